"""What the services share of the outside world: configuration, Kafka, PostgreSQL, gRPC, telemetry."""
