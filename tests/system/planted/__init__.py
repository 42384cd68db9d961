"""Bugs planted into the real services, to see that the checker finds them.

Each bug is a module: `python -m tests.system.planted.<bug>` runs the service with that bug on real Kafka and
PostgreSQL. What makes it show is in `scenarios.py`, which check must find it in `catalogue.py`.
`python -m tests.system.planted` runs all of them and prints which checks found what.
"""
