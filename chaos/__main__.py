"""`python -m chaos [fault …]`: one fault after the other in the middle of a rush, and the checker's verdict on each.

Exit status: 0 CHAOS OK, 1 CHAOS FAILED, 2 a wrong name, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from chaos.fault import Fault
from chaos.faults import FAULTS
from chaos.run import Outcome, run
from chaos.world import Engines
from checker import Counts
from stack import StackError


def main() -> int:
    """Runs the faults. Returns the exit status."""
    options = _options()
    if options.list:
        for fault in FAULTS.values():
            print(f"{fault.name:28} {fault.what}")
        return 0
    unknown = [name for name in options.faults if name not in FAULTS]
    if unknown:
        print(f"chaos: no such fault: {', '.join(unknown)}; --list names them", file=sys.stderr)
        return 2
    faults = [FAULTS[name] for name in options.faults] or list(FAULTS.values())
    folder = options.folder or Path(tempfile.mkdtemp(prefix="firstcome-chaos-"))
    _say(f"{len(faults)} faults, --seed {options.seed}; logs and histories in {folder}")
    began_s = time.monotonic()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcomes = runner.run(_run_all(faults, options.seed, folder))
    except KeyboardInterrupt:
        _say("stopped; everything that it had started is down")
        return 130
    except StackError as error:
        _say(str(error))
        print("CHAOS FAILED the engines did not start", flush=True)
        return 1
    _say(f"{time.monotonic() - began_s:.0f} s in all")
    ok = all(outcome.ok for outcome in outcomes)
    if ok and options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    print(_last_line(outcomes, options.seed, folder), flush=True)
    return 0 if ok else 1


async def _run_all(faults: Sequence[Fault], seed: int, folder: Path) -> list[Outcome]:
    outcomes = []
    async with Engines.start() as engines:
        for number, fault in enumerate(faults, start=1):
            here = folder / fault.name
            here.mkdir(parents=True, exist_ok=True)
            outcome = await run(fault, engines, seed, here)
            outcomes.append(outcome)
            print(f"{number:3}/{len(faults)} {_line(outcome)}", flush=True)
            for finding in outcome.findings:
                print(f"        {finding}", flush=True)
    return outcomes


def _line(outcome: Outcome) -> str:
    told = [f"{outcome.requests:,} requests, {outcome.uncertain:,} asked again"]
    if outcome.report is not None:
        counts = outcome.report.counts
        told.append(f"{counts.issued:,} granted")
        if counts.parked:
            told.append(f"{counts.parked:,} parked")
        told.append(f"stood still {counts.standstill_s:.1f} s")
        if counts.drained_after_s is not None:
            told.append(f"drained {counts.drained_after_s:.1f} s after")
    told += outcome.notes
    return f"{'ok    ' if outcome.ok else 'FAILED'} {outcome.name:28} {outcome.seconds:5.1f} s  {'; '.join(told)}"


def _last_line(outcomes: Sequence[Outcome], seed: int, folder: Path) -> str:
    counts = [outcome.report.counts if outcome.report else Counts() for outcome in outcomes]
    fields = (
        f"faults={len(outcomes)} histories={sum(outcome.requests > 0 for outcome in outcomes)} "
        f"requests={sum(outcome.requests for outcome in outcomes)} oversold={sum(c.oversold for c in counts)} "
        f"duplicates={sum(c.duplicates for c in counts)} lost={sum(c.lost for c in counts)} "
        f"inversions={sum(c.inversions for c in counts)}"
    )
    failed = [outcome.name for outcome in outcomes if not outcome.ok]
    if failed:
        return f"CHAOS FAILED {fields} failed={','.join(failed)} seed={seed} kept={folder}"
    return f"CHAOS OK {fields}"


def _say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("faults", nargs="*", metavar="fault", help="by name (all)")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="fixes who calls when, and when (random)"
    )
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument(
        "--folder", type=Path, help="where logs and histories go and stay (one that goes if all is well)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
