"""`python -m checker --kafka HOST:PORT --postgres DSN`: says promise by promise whether it held.

Exit status: 0 all held, 1 one is broken, 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import asyncpg

from checker.findings import Report
from checker.history import HistoryError
from checker.topics import TopicError
from checker.verify import verify


def main() -> int:
    """Runs the check and prints its report on stdout. Returns the exit status."""
    options = _options()
    gc.disable()  # what an audit makes it keeps to the end or lets go of at once
    try:
        report = asyncio.run(
            verify(
                options.kafka,
                options.postgres,
                topic_prefix=options.topic_prefix,
                history=options.history,
                drain_timeout_s=options.drain_timeout,
                say=lambda text: print(text, file=sys.stderr, flush=True),
            )
        )
    except (TopicError, HistoryError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        print(f"cannot check: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(as_json(report) if options.json else as_text(report))
    return 0 if report.held else 1


def as_text(report: Report) -> str:
    """A line for each promise, below a broken one its first findings; and last the numbers in one line."""
    lines: list[str] = []
    for result in report.results:
        lines.append(f"{'held  ' if result.held else 'BROKEN'}  {result.promise.value}: {result.counted}")
        if not result.held:
            lines.append(f"        {result.broken_count:,} findings, the first:")
            lines += [f"          {finding}" for finding in result.examples]
    return "\n".join([*lines, summary(report)])


def summary(report: Report) -> str:
    """The numbers that matter most, and which checks found something."""
    counts = report.counts
    word = "OK" if report.held else "FAILED"
    line = (
        f"CHECK {word} records={counts.records} issued={counts.issued} calls={counts.calls} "
        f"oversold={counts.oversold} duplicates={counts.duplicates} lost={counts.lost} inversions={counts.inversions} "
        f"parked={counts.parked} believed={sum(counts.believed.values())} standstill_s={counts.standstill_s:.1f}"
    )
    return line if report.held else f"{line} found={','.join(sorted(report.checks))}"


def as_json(report: Report) -> str:
    """The whole report as one JSON object."""
    return json.dumps(
        {
            "held": report.held,
            "promises": [
                {
                    "promise": result.promise.name,
                    "text": result.promise.value,
                    "held": result.held,
                    "counted": result.counted,
                    "broken_count": result.broken_count,
                    "examples": [
                        {
                            "check": finding.check.value,
                            "message": finding.message,
                            "ticket": str(finding.ticket) if finding.ticket else None,
                            "coupon": finding.coupon_id,
                        }
                        for finding in result.examples
                    ],
                }
                for result in report.results
            ],
            "counts": asdict(report.counts),
        },
        indent=2,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m checker", description=__doc__.partition("\n")[0])
    kafka, postgres = os.environ.get("FIRSTCOME_KAFKA_BOOTSTRAP"), os.environ.get("FIRSTCOME_POSTGRES_DSN")
    parser.add_argument("--kafka", default=kafka, required=kafka is None, help="bootstrap servers")
    parser.add_argument("--postgres", default=postgres, required=postgres is None, help="DSN of the database")
    parser.add_argument("--topic-prefix", default="", help="prefix of the topics' names")
    parser.add_argument("--history", type=Path, action="append", help="a client history (JSONL); may be repeated")
    parser.add_argument("--drain-timeout", type=float, default=60, metavar="S", help="how long to wait (60 s)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
