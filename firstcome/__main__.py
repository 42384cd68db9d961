"""`python -m firstcome`: the operators' command line."""

from firstcome.cli import app

if __name__ == "__main__":
    app(prog_name="firstcome")
