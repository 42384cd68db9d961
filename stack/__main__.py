"""`python -m stack up | down | lock`."""

import argparse
import os
import sys

from stack import download, up
from stack.errors import StackError
from stack.local import exit_on_termination


def main() -> int:
    """Exit status 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m stack", description="Kafka, PostgreSQL and our services, locally.")
    commands = parser.add_subparsers(dest="command", required=True)
    help_of_up = "start everything in the background (KEEP=1: with the data of the last time)"
    by_hand, in_background = commands.add_parser("up", help=help_of_up), commands.add_parser("own")
    for command in (by_hand, in_background):
        decided = command is in_background
        command.add_argument("--kafka-port", type=int, required=decided, help=f"{up.KAFKA_PORT} unless given")
        command.add_argument("--postgres-port", type=int, required=decided, help=f"{up.POSTGRES_PORT} unless given")
        command.add_argument("--free-ports", action="store_true", help="free ports for all that are not given")
        command.add_argument("--keep", action="store_true", default=os.environ.get("KEEP") == "1")
    commands.add_parser("down", help="stop what `up` started")
    commands.add_parser("lock", help="resolve Kafka's jars anew and write kafka.lock")
    arguments = parser.parse_args()
    exit_on_termination()
    try:
        if arguments.command == "down":
            up.down()
        elif arguments.command == "lock":
            print(f"{download.write_lock()} jars locked in {download.LOCK_FILE}")
        else:
            run = up.up if arguments.command == "up" else up.own
            run(
                kafka_port=arguments.kafka_port,
                postgres_port=arguments.postgres_port,
                free_ports=arguments.free_ports,
                keep=arguments.keep,
            )
    except StackError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stack: interrupted; everything that was started has been stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
