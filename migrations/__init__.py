"""The migration command: `python -m migrations` builds the tables and creates missing topics. Safe to run again."""
