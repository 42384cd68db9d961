"""`python -m demo`: starts everything, runs the rush, verifies, and says DEMO OK or DEMO FAILED on the last line.

Exit status: 0 DEMO OK, 1 DEMO FAILED, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import grpc
import uvloop
from aiokafka.errors import KafkaError
from rich.console import Console

from checker import HistoryError, TopicError
from demo.plan import Campaign, Plan, make_plan
from demo.rush import Answers
from demo.show import ServiceEnded, System, show
from demo.verdict import Verdict, unverified
from stack import Services, Stack, StackError, leftovers
from stack.otlp import TraceReceiver
from stack.process import tail

PARTITIONS = 4
PLAIN_COLUMNS = 130
# Only the trace that its caller asks for, and dead letters'.
TRACING = {
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}
CAMPAIGNS = (
    ("early-bird", "Early bird, half price", 0.6),
    ("free-coffee", "A free coffee", 0.25),
    ("cinema-night", "Cinema night", 0.15),
)


def main() -> int:
    """Runs the demo. Returns the exit status."""
    options = _options()
    plan = make_plan(options.seed, tuple(Campaign(i, n, options.stock, s) for i, n, s in CAMPAIGNS), options.people)
    _say(
        f"{options.people:,} people, {len(plan.arrivals):,} calls, "
        f"{len(CAMPAIGNS)} coupons of {options.stock:,}; --seed {options.seed}"
    )
    answers_to: list[Answers] = []
    started_s = time.monotonic()
    try:
        verdict = _run(plan, options.log_dir, answers_to)
    except KeyboardInterrupt:
        _say("stopped; everything that it had started is down")
        return 130
    except (StackError, ServiceEnded, TopicError, HistoryError, KafkaError, OSError) as error:
        verdict = _failed(answers_to, error)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, grpc.aio.AioRpcError, BaseExceptionGroup) as error:
        verdict = _failed(answers_to, error)
    _say(f"{time.monotonic() - started_s:.1f} s in all")
    print(verdict.line, flush=True)
    return 0 if verdict.ok else 1


def _run(plan: Plan, log_dir: Path | None, answers_to: list[Answers]) -> Verdict:
    started_s = time.monotonic()
    _say("starting Kafka, PostgreSQL and the services (the first start downloads Kafka)")
    with Stack.start() as stack, _folder() as folder, TraceReceiver() as traces:
        # Servers that are not ours may have seen an earlier demo.
        ours = not ({"FIRSTCOME_KAFKA_BOOTSTRAP", "FIRSTCOME_POSTGRES_DSN"} & os.environ.keys())
        run = "" if ours else f"demo-{secrets.token_hex(4)}"
        dsn = stack.create_database(run.replace("-", "_")) if run else stack.postgres_dsn
        prefix = f"{run}." if run else ""
        services = Services(
            stack.kafka_bootstrap,
            dsn,
            log_dir=log_dir or Path(folder),
            partitions=PARTITIONS,
            topic_prefix=prefix,
            env={**TRACING, "OTEL_EXPORTER_OTLP_ENDPOINT": traces.endpoint},
        )

        def ended() -> str | None:
            for process in services.processes.values():
                if not process.running:
                    return (
                        f"{process.name} ended (status {process.returncode}). Its log ends:\n{tail(process.log_path)}"
                    )
            return None

        with services:
            _say(f"all of them answer after {time.monotonic() - started_s:.1f} s; the rush begins")
            system = System(stack.kafka_bootstrap, dsn, services.issuer_address, PARTITIONS, prefix, ended, traces)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                history = Path(folder) / "history.jsonl"
                return runner.run(show(system, plan, history, answers_to, _stdout()))


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """For logs and history; swept by the next start where a kill left it."""
    folder = Path(tempfile.mkdtemp(prefix="firstcome-demo-"))
    leftovers.remember_folder(folder)
    try:
        yield str(folder)
    finally:
        leftovers.delete_folder(folder)


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def _stdout() -> Console:
    console = Console(highlight=False)
    # Without a terminal rich falls back to 80 columns, too few for the tables.
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_COLUMNS)


def _failed(answers_to: list[Answers], error: BaseException) -> Verdict:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    _say(f"{type(error).__name__}: {error}")
    return unverified(answers_to[0] if answers_to else Answers(), type(error).__name__)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="fixes who calls when (random)")
    parser.add_argument("--people", type=int, default=20_000, help="how many people come (20,000)")
    parser.add_argument("--stock", type=int, default=1_000, help="how many there are of each coupon (1,000)")
    parser.add_argument("--log-dir", type=Path, help="where the services' logs go (a folder that is deleted)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
