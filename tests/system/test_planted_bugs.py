"""Real services with real bugs, on real Kafka and PostgreSQL: the checker names each, and healthy services pass."""

from __future__ import annotations

import pytest

from stack import Stack
from tests.system.planted.catalogue import BUGS, SCENARIOS, Bug, Run, run_all

# The first test waits for all of it.
pytestmark = pytest.mark.timeout(400)

COUNTED = {
    "no_unique_key": "duplicates",
    "stock_forgotten": "oversold",
    "offset_before_transaction": "lost",
    "accepted_without_acknowledgement": "lost",
    "last_come_first_served": "inversions",
}
"""The number of the report's that a bug shows in."""


@pytest.fixture(scope="module")
async def run(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return await run_all(stack, tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.module)
async def test_a_planted_bug_is_found_by_its_check(run: Run, bug: Bug) -> None:
    report = run.planted[bug.module]
    assert bug.check in report.checks, [str(finding) for finding in report.findings]
    if bug.module in COUNTED:
        assert getattr(report.counts, COUNTED[bug.module]) > 0


async def test_healthy_services_pass_with_all_that_happened_to_the_others(run: Run) -> None:
    assert [str(finding) for finding in run.healthy.findings] == []
    counts = run.healthy.counts
    assert (counts.oversold, counts.duplicates, counts.lost, counts.inversions) == (0, 0, 0, 0)
    # All of it did happen.
    assert counts.coupons == len(SCENARIOS)
    assert counts.believed == {"UNSTORABLE": 1}
    assert counts.unanswered == 1
    assert counts.refusals_without_ticket >= 1
