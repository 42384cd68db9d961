"""The issuer: the gRPC API. Checks duplicates, puts requests into the line, tells outcomes."""
