"""Replay jobs: redrives, audits and republications, run by whichever dlq holds their lease."""
