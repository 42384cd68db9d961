"""The ledger: settles the line. Stock and issue record change in one PostgreSQL transaction."""
