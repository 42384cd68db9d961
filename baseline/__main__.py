"""`python -m baseline`: API and scheduler in one process; `python -m baseline.api` and `.scheduler` run each alone."""

from baseline import api, lifecycle, scheduler

if __name__ == "__main__":
    lifecycle.main(api.serve, scheduler.serve)
