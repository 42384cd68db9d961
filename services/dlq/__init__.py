"""The dlq: files what could not be processed, and puts back into the line what may work now."""
