"""Ports that are given to servers."""

from __future__ import annotations

import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

from stack import free_port
from stack.locations import REPOSITORY

_HOLDER = "from stack import free_port; print(free_port(), flush=True); input()"


def test_a_port_is_another_process_own_until_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on it: its server may not have begun, or be killed and about to start again."""
    offered: list[int] = []

    def randrange(start: int, stop: int) -> int:
        return offered.pop() if offered else random.randrange(start, stop)

    monkeypatch.setattr("stack.ports.random", SimpleNamespace(randrange=randrange))
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        theirs = int(holder.stdout.readline())
        offered.append(theirs)
        assert free_port() != theirs
        holder.communicate("\n", timeout=30)
    offered.append(theirs)
    assert free_port() == theirs
