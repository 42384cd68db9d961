"""Prometheus's own programs, which not every machine has."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of prometheus or promtool; without it the test is skipped, or fails: FIRSTCOME_REQUIRE_PROMETHEUS=1."""
    found = shutil.which(name)
    if found is None:
        told = f"{name} is not installed, so nothing is known of the rules and dashboards: apt-get install prometheus"
        if os.environ.get("FIRSTCOME_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(told)
        pytest.skip(told)
    return found
