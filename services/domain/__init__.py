"""The rules of first come, first served: pure values and functions. No I/O, no clock, no randomness."""
