"""The bench works, whatever it would measure on a machine that also runs tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 150


def test_a_tiny_rush_on_both_systems_is_measured_and_checked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--tiny", "--only", "rush", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    flat = json.loads((tmp_path / "results.json").read_text())
    assert flat["failures"] == 0
    assert flat["checker_rush"] == "OK"
    assert flat["rush_requests"] > 0
    assert flat["sold_out_storm_refused"] > 0
    assert flat["duplicate_storm_refused"] > 0
    assert 0 < flat["rush_p50_ms"] <= flat["rush_p999_ms"]
    assert flat["rss_max_mb"] > 0
    assert {"tail_s", "baseline_tail_s", "baseline_rush_p99_ms", "sold_out_storm_p99_ms"} <= flat.keys()
    assert done.stdout.splitlines()[-1].startswith("BENCH OK ")
    assert {"rush.png", "lag.png", "latency.png", "report.md"} <= {path.name for path in tmp_path.iterdir()}
