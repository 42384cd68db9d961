"""`python -m examples.notifier`: writes a line for each winner. Exit status 0, or 1 with a sentence."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TextIO

from aiokafka.errors import KafkaError

from examples.notifier.notifier import OutcomesLost, notify
from examples.notifier.store import Store, Win


async def run(options: argparse.Namespace, out: TextIO) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    def tell(win: Win) -> None:
        # Here a message would go out, with ce_id as the key by which its receiver drops a repetition.
        print(f"{win.user_id} has coupon {win.coupon_id}, number {win.sequence} [{win.ce_id}]", file=out, flush=True)

    store = Store(options.store)
    try:
        await notify(options.bootstrap, options.topic, store, tell, stopping, until_end=options.until_end)
    finally:
        store.close()


def main() -> int:
    parser = argparse.ArgumentParser("python -m examples.notifier", description="Writes a line for each winner, once.")
    bootstrap = os.environ.get("FIRSTCOME_KAFKA_BOOTSTRAP")
    parser.add_argument("--bootstrap", default=bootstrap, required=bootstrap is None, help="Kafka's address")
    parser.add_argument("--topic", default="coupon.issue-outcomes.v1", help="of the outcomes (default: %(default)s)")
    parser.add_argument("--store", type=Path, default=Path("notifier.sqlite"), help="its memory (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append the lines to this file (default: print them)")
    parser.add_argument("--until-end", action="store_true", help="end once all that is there now is read")
    options = parser.parse_args()
    try:
        if options.out is None:
            asyncio.run(run(options, sys.stdout))
        else:
            with options.out.open("a", encoding="utf-8") as out:
                asyncio.run(run(options, out))
    except (OutcomesLost, KafkaError, OSError, sqlite3.Error) as error:
        print(f"notifier: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
