"""Tells each winner once: a consumer of the outcomes topic, as a pattern. `python -m examples.notifier --help`."""
