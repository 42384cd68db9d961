"""Which Python `.venv` is made with: `python3 -I stack/interpreter.py` prints it. Needs nothing installed.

Distributions build Python by a profile of its own work; pyenv, or whoever compiles it, does not without being told to,
and then all that we run needs a seventh more CPU time (docs/decisions/0020). So where the one that is asked is such a
one, the distribution's is taken, if it will do.
"""

import subprocess
import sys
import sysconfig

DISTRIBUTIONS = "/usr/bin/python3"
_WILL_DO = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
_TIMEOUT_S = 30


def is_optimized(prefix: str, configured: str) -> bool:
    """By where it is installed, for a distribution's arguments of `configure` do not tell, or by these arguments."""
    return prefix == "/usr" or "--enable-optimizations" in configured


def choose() -> str:
    """This Python, or the distribution's if that is faster and has all that is needed."""
    if is_optimized(sys.base_prefix, sysconfig.get_config_var("CONFIG_ARGS") or ""):
        return sys.executable
    try:
        asked = subprocess.run([DISTRIBUTIONS, "-c", _WILL_DO], capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return sys.executable
    return sys.executable if asked.returncode else DISTRIBUTIONS


if __name__ == "__main__":
    print(choose())
