"""`up` and `down`: everything at the documented ports, or at free ones, owned by one background process."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from stack import download, leftovers, local, progress
from stack.errors import StackError
from stack.identity import ProcessIdentity, identify, machine
from stack.local import Stack
from stack.locations import cache_dir, delete_tree
from stack.ports import HOST, Ports, free_port, require_free
from stack.process import tail
from stack.prometheus import NOT_INSTALLED, Prometheus, installed
from stack.services import Services, environment

KAFKA_PORT: Final = 9092
POSTGRES_PORT: Final = 5432
PROMETHEUS_PORT: Final = 9090
_UP_TIMEOUT_S: Final = 240
_DOWN_TIMEOUT_S: Final = 90  # three services at 20 s, Kafka and PostgreSQL at most
_KILL_TIMEOUT_S: Final = 10
_POLL_S: Final = 0.1
_WATCH_S: Final = 0.5
_SERVICE_RESTARTS_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class Owner:
    """What the owner process writes down about itself once everything answers."""

    machine: str
    pid: int
    started_ticks: int
    kafka: str
    postgres: str
    ports: Ports
    prometheus: str = ""

    def alive(self) -> bool:
        return self.machine == machine() and ProcessIdentity(self.pid, self.started_ticks).alive()


def up(*, kafka_port: int | None, postgres_port: int | None, free_ports: bool, keep: bool) -> None:
    """Starts all in the background and prints the addresses; returns when all are healthy, at once if they are already.

    A port of None is the documented one, or with `free_ports` a free one, as then those of the services are. The data
    of the last time are deleted unless `keep`. Raises StackError, with nothing left running.
    """
    kafka_port = kafka_port or (free_port() if free_ports else KAFKA_PORT)
    postgres_port = postgres_port or (free_port() if free_ports else POSTGRES_PORT)
    folder = _folder()
    with download.exclusive(folder / "guard"):
        owner = _read_owner()
        if owner is not None:
            print("Already running; `make down` stops it.")
        else:
            # Looked at here as well, where the option can be named and nothing has been started.
            if not os.environ.get("FIRSTCOME_KAFKA_BOOTSTRAP"):
                require_free(kafka_port, "Kafka (--kafka-port)")
            if not os.environ.get("FIRSTCOME_POSTGRES_DSN"):
                require_free(postgres_port, "PostgreSQL (--postgres-port)")
            if not free_ports:
                for name, port in asdict(Ports()).items():
                    require_free(port, name.replace("_", " "))
            if os.environ.get("OBSERVE") == "1":
                if installed() is None:
                    progress.say(NOT_INSTALLED)
                elif not free_ports:
                    require_free(PROMETHEUS_PORT, "Prometheus")
            local.prepare()  # here rather than in the background, where nobody sees how far the downloads are
            owner = _start_owner(kafka_port, postgres_port, free_ports=free_ports, keep=keep)
    print(describe(owner))


def down() -> None:
    """Stops what `up` started and waits for it; says so if nothing runs. Raises StackError if it cannot be stopped."""
    with download.exclusive(_folder() / "guard"):  # an `up` that is under way comes first
        owner = _read_owner()
        if owner is None:
            print("Not running.")
        else:
            _end(ProcessIdentity(owner.pid, owner.started_ticks))
            print("Stopped.")
    for line in leftovers.sweep():
        progress.say(line)


def own(*, kafka_port: int, postgres_port: int, free_ports: bool, keep: bool) -> None:
    """The background process: starts everything, watches it, and stops it at SIGTERM or when an engine ends."""
    folder = _folder()
    data = folder / "data"
    if not keep:
        delete_tree(data)
    with contextlib.ExitStack() as closing:
        stack = closing.enter_context(Stack.start(kafka_port=kafka_port, postgres_port=postgres_port, data_dir=data))
        services = closing.enter_context(
            Services(
                stack.kafka_bootstrap,
                stack.postgres_dsn,
                ports=Ports.free() if free_ports else Ports(),
                log_dir=folder / "log",
            )
        )
        port = free_port() if free_ports else PROMETHEUS_PORT
        prometheus = _observe(folder, port, services.ports) if os.environ.get("OBSERVE") == "1" else None
        if prometheus is not None:
            closing.callback(prometheus.stop)
        closing.enter_context(_written_down(stack, services.ports, prometheus))
        progress.say("ready")
        _watch(stack, services)


def _observe(folder: Path, port: int, ports: Ports) -> Prometheus | None:
    """Prometheus with our rules, or None where it is not installed. Raises StackError."""
    if installed() is None:
        return None
    targets = {"issuer": [ports.issuer_metrics], "ledger": [ports.ledger_metrics], "dlq": [ports.dlq_metrics]}
    prometheus = Prometheus(folder / "prometheus", port, targets, log_path=folder / "log" / "prometheus.log")
    prometheus.start()
    try:
        prometheus.wait_ready()
    except BaseException:
        prometheus.stop()
        raise
    return prometheus


def describe(owner: Owner) -> str:
    """The addresses, and calls to try."""
    ports = owner.ports
    issuer = f"{HOST}:{ports.issuer}"
    coupon = {"display_name": "Welcome", "total_quantity": 100}
    calls = (
        ("CouponService/CreateCoupon", {"coupon_id": "welcome", "coupon": coupon}),
        ("IssuerService/IssueCoupon", {"coupon": "coupons/welcome", "user_id": "alice", "wait": True}),
        ("IssuerService/GetIssuance", {"name": "coupons/welcome/issuances/alice"}),
    )
    lines = [
        f"KAFKA {owner.kafka}",
        f"POSTGRES {owner.postgres}",
        f"ISSUER {issuer}",
        f"DLQ {HOST}:{ports.dlq}",
        f"ISSUER health {HOST}:{ports.issuer_health}",
        f"LEDGER health {HOST}:{ports.ledger_health}",
        f"DLQ health {HOST}:{ports.dlq_health}",
        *(
            f"{name.upper()} metrics http://{HOST}:{port}/metrics"
            for name, port in (
                ("issuer", ports.issuer_metrics),
                ("ledger", ports.ledger_metrics),
                ("dlq", ports.dlq_metrics),
            )
        ),
        *([f"PROMETHEUS {owner.prometheus}  (alerts at /alerts)"] if owner.prometheus else []),
        f"LOGS {_folder() / 'log'}",
        "The services run with FIRSTCOME_AUTH=off: whoever reaches these ports may do everything.",
        "Try:",
        *(f"  grpcurl -plaintext -d '{json.dumps(body)}' {issuer} coupon.v1.{method}" for method, body in calls),
    ]
    return "\n".join(lines)


def _folder() -> Path:
    folder = cache_dir() / "up"
    folder.mkdir(exist_ok=True)
    return folder


def _read_owner() -> Owner | None:
    try:
        written = json.loads((_folder() / "owner.json").read_text())
        owner = Owner(**{**written, "ports": Ports(**written.get("ports", {}))})
    except (OSError, ValueError, TypeError):
        return None
    return owner if owner.alive() else None


@contextlib.contextmanager
def _written_down(stack: Stack, ports: Ports, prometheus: Prometheus | None) -> Iterator[None]:
    me = identify(os.getpid())
    if me is None:
        raise StackError("This process is not in /proc; is /proc mounted?")
    watched = f"http://{prometheus.address}" if prometheus is not None else ""
    owner = Owner(machine(), me.pid, me.started_ticks, stack.kafka_bootstrap, stack.postgres_dsn, ports, watched)
    path = _folder() / "owner.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(owner)))
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _start_owner(kafka_port: int, postgres_port: int, *, free_ports: bool, keep: bool) -> Owner:
    log_path = _folder() / "owner.log"
    log_path.unlink(missing_ok=True)
    shutil.rmtree(_folder() / "log", ignore_errors=True)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "stack", "own", "--kafka-port", str(kafka_port)),
                *("--postgres-port", str(postgres_port)),
                *(["--free-ports"] if free_ports else []),
                *(["--keep"] if keep else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",  # a background process must not hold the folder it was started in
            env=environment({}),
            start_new_session=True,
        )
    progress.say(f"starting Kafka, PostgreSQL, issuer, ledger and dlq; the owner's log is {log_path}")
    deadline = time.monotonic() + _UP_TIMEOUT_S
    try:
        while (owner := _read_owner()) is None:
            if process.poll() is not None:
                raise StackError(
                    log_path.read_text(errors="replace").strip().removeprefix("stack: ")
                    or "The owner process ended without a word."
                )
            if time.monotonic() > deadline:
                raise StackError(f"Not ready within {_UP_TIMEOUT_S} s:\n{tail(log_path)}")
            time.sleep(_POLL_S)
    except BaseException:
        identity = identify(process.pid)
        if identity is not None:
            _end(identity)
        raise
    return owner


def _end(owner: ProcessIdentity) -> None:
    for signal_number, timeout_s in ((signal.SIGTERM, _DOWN_TIMEOUT_S), (signal.SIGKILL, _KILL_TIMEOUT_S)):
        try:
            os.kill(owner.pid, signal_number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise StackError(
                f"Process {owner.pid} belongs to another user: run `down` as the user who ran `up`."
            ) from error
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not owner.alive():
                return
            time.sleep(_POLL_S)
        progress.say(f"the owner (pid {owner.pid}) did not end within {timeout_s} s of {signal_number.name}")
    raise StackError(f"The owner (pid {owner.pid}) does not end.")


def _watch(stack: Stack, services: Services) -> None:
    restarts = dict.fromkeys(services.processes, 0)
    while True:
        for engine in stack.own_engines():
            if not engine.running:
                # Said before the rest is stopped, which may take a while.
                progress.say(
                    f"{engine.name} has ended (status {engine.returncode}), so everything is stopped. "
                    f"The end of its log:\n{tail(engine.log_path)}"
                )
                sys.exit(1)
        for name, process in services.processes.items():
            if not process.running and restarts[name] < _SERVICE_RESTARTS_MAX:
                restarts[name] += 1
                progress.say(
                    f"{name} has ended (status {process.returncode}); it is started again "
                    f"({restarts[name]} of {_SERVICE_RESTARTS_MAX} times); its log: {process.log_path}"
                )
                process.start()
        time.sleep(_WATCH_S)
