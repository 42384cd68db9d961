"""The main job on a realistic rush, then a verification from outside: `python -m demo`."""
