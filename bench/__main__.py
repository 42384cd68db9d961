"""`python -m bench`: runs every scenario and writes build/bench: results.json, report.md, plots.

Exit status: 0 all scenarios ran and the checker found no broken promise, 1 otherwise, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from bench import backlog, batches, faults, growth, paced, report, rush, unary
from bench.lengths import FULL, TINY, Lengths
from bench.results import Results
from bench.session import Session, program
from stack import Stack, StackError, free_port
from stack.local import exit_on_termination
from stack.locations import REPOSITORY
from stack.ports import HOST

OUT = Path("build/bench")
DOCS = REPOSITORY / "docs" / "benchmarks.md"
POSTGRES_SETTINGS = {"max_wal_size": "8GB"}
SHARED_BUFFERS = "1GB"
Scenario = Callable[[Session], Awaitable[None]]
SCENARIOS: Mapping[str, tuple[Scenario, int]] = {
    "unary": (unary.scenario, 215),
    "paced": (paced.scenario, 85),
    "batch": (batches.scenario, 210),
    "rush": (rush.scenario, 35),
    "ledger": (backlog.scenario, 155),
    "growth": (growth.scenario, 260),
    "faults": (faults.scenario, 110),
}
"""Name → what runs, and about how many seconds it takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _options(arguments)
    lengths = _lengths(options)
    results = Results()
    began_s = time.monotonic()
    exit_on_termination()
    try:
        uvloop.run(_run(lengths, options.only, results))
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130
    except StackError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    results.put(seconds=time.monotonic() - began_s)
    results.write(options.out)
    text = report.write(results, options.out)
    if options.update_docs:
        report.update_docs(results, DOCS)
    print(text)
    print(report.summary(results))
    return 1 if results.failures else 0


async def _run(lengths: Lengths, names: Sequence[str], results: Results) -> None:
    folder = Path(tempfile.mkdtemp(prefix="firstcome-bench-"))
    collector = f"{HOST}:{free_port()}"
    try:
        stack = await asyncio.to_thread(
            Stack.start, shared_buffers=SHARED_BUFFERS, postgres_settings=POSTGRES_SETTINGS, redis=True
        )
        try:
            session = Session(stack, lengths, results, folder, collector)
            async with program("bench.otlp_sink", collector, log_path=folder / "otlp_sink.log"), session.memory:
                left_s = sum(about_s for name, (_, about_s) in SCENARIOS.items() if name in names)
                for number, name in enumerate(names, start=1):
                    scenario, about_s = SCENARIOS[name]
                    session.say(f"[{number}/{len(names)}] {name}: about {about_s} s, then {left_s - about_s} s more")
                    left_s -= about_s
                    await _one(session, name, scenario)
            _memory(results, session.memory.max_mb)
        finally:
            await asyncio.to_thread(stack.stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _one(session: Session, name: str, scenario: Scenario) -> None:
    began_s = time.monotonic()
    try:
        await scenario(session)
    except StackError:
        raise
    except Exception as error:
        # The other scenarios stand by themselves; the run as a whole is no good.
        session.results.fail(f"{name}: {type(error).__name__}: {error}")
        traceback.print_exc()
    seconds = time.monotonic() - began_s
    session.results.put(**{f"seconds_{name}": seconds})
    session.say(f"  {seconds:.0f} s")


def _memory(results: Results, max_mb: Mapping[str, float]) -> None:
    """The most that each service process had in any scenario."""
    ours: dict[str, float] = {}
    for name, mb in max_mb.items():
        system, _, part = name.partition(" ")
        part = part.rstrip("0123456789")
        key = f"rss_{part}_mb" if system == "firstcome" else f"baseline_rss_{part}_mb"
        ours[key] = max(ours.get(key, 0.0), mb)
    results.put(**ours)
    results.put(rss_max_mb=max((mb for key, mb in ours.items() if key.startswith("rss_")), default=0.0))


def _lengths(options: argparse.Namespace) -> Lengths:
    lengths = TINY if options.tiny else FULL
    if options.requests:
        lengths = replace(lengths, backlog_requests=options.requests)
    if options.slices:
        lengths = replace(lengths, slices=options.slices)
    return lengths


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="which scenarios (all)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where results go ({OUT})")
    parser.add_argument("--update-docs", action="store_true", help="write what was found into docs/benchmarks.md")
    parser.add_argument("--tiny", action="store_true", help="see that everything works; figures mean nothing")
    parser.add_argument("--requests", type=int, help="of the ledger's backlog")
    parser.add_argument("--slices", type=int, help="of the unary scenario")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
