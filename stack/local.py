"""Kafka and PostgreSQL together; with them, if asked for, the Redis of the system that is compared."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, TypeVar

from stack import leftovers, ports, progress
from stack.engine import Engine
from stack.errors import StackError
from stack.kafka import Kafka, prepare_kafka
from stack.locations import require_free_space, temporary_folder
from stack.postgres import Postgres, create_database, prepare_postgres
from stack.redis import Redis

_JOIN_S: Final = 0.2


class Stack:
    """A running Kafka broker and PostgreSQL server, both on 127.0.0.1; a context manager.

    They end with this process, however it ends: at the end of the `with` block, at exit, at SIGTERM or Ctrl-C in an
    orderly way; with a killed process by a signal from the kernel.
    """

    def __init__(
        self, kafka: Kafka | str, postgres: Postgres | str, temporary: Path | None, redis: Redis | None = None
    ) -> None:
        """Use `Stack.start()`. A string instead of an engine is the address of a server that is not ours."""
        self._kafka = kafka
        self._postgres = postgres
        self._redis = redis
        self._temporary = temporary
        self.kafka_bootstrap = kafka if isinstance(kafka, str) else kafka.address
        self.postgres_dsn = postgres if isinstance(postgres, str) else postgres.dsn

    @classmethod
    def start(
        cls,
        *,
        kafka_port: int | None = None,
        postgres_port: int | None = None,
        data_dir: Path | None = None,
        shared_buffers: str = "256MB",
        postgres_settings: Mapping[str, str] | None = None,
        redis: bool = False,
        kafka_detour_port: int | None = None,
    ) -> "Stack":
        """Starts both, and `redis`, in parallel and returns when all answer.

        A port of None is a free one; a `data_dir` of None is a temporary folder, deleted at the end. A server whose
        address is in the environment (FIRSTCOME_KAFKA_BOOTSTRAP, FIRSTCOME_POSTGRES_DSN) is used instead of an own one.
        `kafka_detour_port`: see Kafka.
        Raises StackError, with nothing left running.
        """
        external_kafka = os.environ.get("FIRSTCOME_KAFKA_BOOTSTRAP")
        external_postgres = os.environ.get("FIRSTCOME_POSTGRES_DSN")
        if external_kafka and external_postgres and not redis:
            return cls(external_kafka, external_postgres, None)
        _require_linux()
        for line in leftovers.sweep():
            progress.say(line)
        temporary = None
        if data_dir is None:
            temporary = temporary_folder()
            leftovers.remember_folder(temporary)
        folder = temporary or data_dir or Path()
        stack = cls(
            external_kafka or Kafka(folder / "kafka", kafka_port or ports.free_port(), detour_port=kafka_detour_port),
            external_postgres
            or Postgres(
                folder / "postgres",
                postgres_port or ports.free_port(),
                shared_buffers=shared_buffers,
                settings=postgres_settings or {},
                lasting=temporary is None,
            ),
            temporary,
            Redis(folder / "redis", ports.free_port()) if redis else None,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            require_free_space(folder)
            atexit.register(stack.stop)
            exit_on_termination()
            stack._start_engines()
        except BaseException:
            stack.stop()
            raise
        return stack

    @property
    def kafka(self) -> Kafka:
        """Raises StackError if the broker is not ours."""
        return _own(self._kafka, "Kafka")

    @property
    def postgres(self) -> Engine:
        """Raises StackError if the server is not ours."""
        return _own(self._postgres, "PostgreSQL")

    @property
    def redis(self) -> Redis:
        """Raises StackError if it was not asked for."""
        if self._redis is None:
            raise StackError("This stack has no Redis: start it with redis=True.")
        return self._redis

    def create_database(self, name: str) -> str:
        """A fresh, empty database on this server; returns its DSN. Raises StackError."""
        return create_database(self.postgres_dsn, name)

    def stop(self) -> None:
        """Ends Kafka, PostgreSQL, Redis, and deletes temporary data. Idempotent; servers not ours are left alone."""
        engines = self.own_engines()
        for engine in engines:
            engine.cancelled.set()
        for engine in engines:
            if self._temporary is not None and engine.running:
                # Nobody will read the data again, so there is nothing to write down first.
                engine.kill(signal.SIGQUIT if isinstance(engine, Postgres) else signal.SIGKILL)
            engine.stop()
        if self._temporary is not None:
            leftovers.delete_folder(self._temporary)
        atexit.unregister(self.stop)

    def __enter__(self) -> "Stack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def own_engines(self) -> list[Kafka | Postgres | Redis]:
        """The engines that are ours to stop, in the order in which they are stopped."""
        engines = (self._kafka, self._postgres, self._redis)
        return [engine for engine in engines if engine is not None and not isinstance(engine, str)]

    def _start_engines(self) -> None:
        engines = self.own_engines()
        for engine in engines:
            ports.require_free(engine.port, engine.name)
        failures: list[BaseException] = []

        def start(engine: Kafka | Postgres | Redis) -> None:
            try:
                engine.prepare()
                engine.start()
                engine.wait_ready()
            except BaseException as error:
                failures.append(error)
                for other in engines:
                    other.cancelled.set()

        threads = [threading.Thread(target=start, args=(engine,), daemon=True) for engine in engines]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(_JOIN_S)  # in small steps, so that Ctrl-C gets through
                threads[-1].join(_JOIN_S)
        except BaseException:
            for engine in engines:
                engine.cancelled.set()
            for thread in threads:
                thread.join()
            raise
        if failures:
            raise failures[0]


def prepare() -> None:
    """Downloads and prepares everything that the first start needs, and nothing more. Raises StackError."""
    _require_linux()
    cancelled = threading.Event()
    if not os.environ.get("FIRSTCOME_KAFKA_BOOTSTRAP"):
        prepare_kafka(cancelled)
    if not os.environ.get("FIRSTCOME_POSTGRES_DSN"):
        prepare_postgres()


def _require_linux() -> None:
    if not sys.platform.startswith("linux"):
        raise StackError(
            f"The embedded stack runs on Linux only, not on {sys.platform}. Use compose.yaml, and set "
            "FIRSTCOME_KAFKA_BOOTSTRAP and FIRSTCOME_POSTGRES_DSN to its servers."
        )


E = TypeVar("E", bound=Engine)


def _own(engine: E | str, name: str) -> E:
    if isinstance(engine, str):
        raise StackError(f"{name} at {engine} was given by the environment, so this stack cannot stop or start it.")
    return engine


def exit_on_termination() -> None:
    """Turns SIGTERM and SIGHUP into an ordinary exit, unless the program has handlers of its own."""
    if threading.current_thread() is not threading.main_thread():
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    handler: Callable[[int, FrameType | None], None] = leave
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, handler)
