"""The bench's own arithmetic: schedules, percentiles, ratios, the report."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram

from bench import report
from bench.callers import part_of
from bench.load import Load, arrivals_s
from bench.results import Results, median_ratio
from bench.session import rates


def test_arrivals_are_a_schedule_of_the_rate_and_the_same_again_for_the_same_seed() -> None:
    moments = list(arrivals_s(1_000, 10, "seed"))
    assert moments == sorted(moments) == list(arrivals_s(1_000, 10, "seed"))
    assert moments != list(arrivals_s(1_000, 10, "other"))
    assert moments[0] > 0
    assert moments[-1] < 10
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    gaps = [later - one for one, later in itertools.pairwise(moments)]
    # Independent arrivals: gaps deviate as much as their mean.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)


def test_processes_share_a_load_and_have_users_of_their_own() -> None:
    load = Load("a", "coupons/c", "u", rate_per_s=10, callers=8, calls=100, user_pool=50)
    parts = [part_of(load, number, 2) for number in range(2)]
    assert [part.user_prefix for part in parts] == ["u0", "u1"]
    assert {(part.rate_per_s, part.callers, part.calls, part.user_pool) for part in parts} == {(5, 4, 50, 25)}


def test_ratios_are_of_neighbours() -> None:
    assert median_ratio([1, 10, 3], [2, 10, 3]) == 1
    assert median_ratio([80, 8], [100, 10]) == pytest.approx(0.8)


def test_rates_come_from_counts_over_time() -> None:
    assert rates([(0.0, 0.0), (0.1, 5.0), (0.5, 50.0), (1.0, 50.0)], bucket_s=0.5) == [(0.5, 100.0), (1.0, 0.0)]


def filled() -> Results:
    results = Results()
    latencies = HdrHistogram(1, 60_000_000, 3)
    for ms in range(1, 101):
        latencies.record_value(ms * 1000)
    results.put_latency("settled", latencies)
    results.put(unary_per_s=7_500.0, noop_per_s=10_000.0, unary_ratio=0.75, tail_s=1.5, checker_rush="OK")
    results.put(baseline_unary_per_s=9_000.0, saturation_per_s=12_345.6)
    results.line("growth", "settled", [(100_000, 40_000), (10_000_000, 36_000)])
    kinds = ("told_issued", "stored", "stock", "lost", "oversold", "twice", "unsold", "blocked", "unanswered")
    fault: dict[str, float | int | str] = {
        "fault": "stock",
        "system": "redis",
        "killed": "redis",
        "standstill_s": 0.7,
        **dict.fromkeys(kinds, 41),
    }
    results.faults.append(fault)
    return results


def test_the_report_sets_figures_beside_limits_and_says_what_was_missed(tmp_path: Path) -> None:
    results = filled()
    text = report.write(results, tmp_path)
    lines = text.splitlines()
    unary = next(line for line in lines if line.startswith("| unary IssueCoupon"))
    assert "7,500 calls/s" in unary
    assert "10,000 calls/s: a call that does nothing" in unary
    assert unary.endswith("| 0.75 | ≥ 0.75 | met |")
    assert next(line for line in lines if "last row after the last call |" in line).endswith("| ≤ 1 | missed |")
    settled = next(line for line in lines if line.startswith("| settled (calls that wait)"))
    assert [round(float(cell)) for cell in settled.split("|")[2:-1]] == [50, 90, 99, 100]
    assert "| unary calls/s, 200 callers | 9,000 | 7,500 | better: Redis system |" in lines
    assert "| 10,000,000 | 36,000 |" in lines
    assert next(line for line in lines if line.startswith("| Kafka or Redis, once: redis | redis |")).count(" 41 ") == 9
    assert {path.name for path in tmp_path.glob("*.png")} == {"latency.png", "growth.png"}


def test_results_are_flat_and_failures_are_said(tmp_path: Path) -> None:
    results = filled()
    results.write(tmp_path)
    flat = json.loads((tmp_path / "results.json").read_text())
    assert flat["unary_ratio"] == 0.75
    assert flat["saturation_per_s"] == 12350
    assert flat["failures"] == 0
    assert all(isinstance(value, int | float | str) for value in flat.values())
    assert report.summary(results).startswith("BENCH OK unary_ratio=0.75 settled_p99_ms=99")
    results.fail("rush: oversold")
    assert report.summary(results).startswith("BENCH FAILED ")
    assert "- rush: oversold" in report.write(results, tmp_path)


def test_only_what_stands_between_the_marks_of_the_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nwhat was there\n{report.END}\nafter\n")
    for _ in range(2):
        report.update_docs(filled(), page)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n\n## Measured")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "what was there" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        report.update_docs(filled(), page)
