"""Faults in the middle of a rush, and what an independent checker says of them: `python -m chaos`."""
