"""What runs the product elsewhere: images, manifests, observability."""
