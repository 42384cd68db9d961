"""The system that this one replaced, kept as a reference: coupons issued from Redis, stored by a scheduler.

It stands as its design has it, crash windows included; docs/baseline.md says which.
"""
