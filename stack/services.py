"""Our services and the migration as child processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stack import ports as port_numbers
from stack import progress
from stack.errors import StackError
from stack.locations import REPOSITORY
from stack.ports import HOST, Ports
from stack.process import Child, spawn, tail

STOP_ORDER: Final = ("issuer", "ledger", "dlq")  # no new requests; then the line is settled; then its failures
BACKGROUND: Final = ("ledger", "dlq")
"""What works behind the issuer, which callers wait for."""
_POLL_S: Final = 0.05
_KILL_TIMEOUT_S: Final = 10.0
_HEALTH_TIMEOUT_S: Final = 2.0
_MIGRATION_TIMEOUT_S: Final = 120


class ServiceProcess:
    """One service as a child process: `python -m services.<name>`. It may be started again after it has ended."""

    def __init__(
        self,
        name: str,
        env: Mapping[str, str],
        *,
        log_path: Path,
        health_port: int,
        module: str | None = None,
        root: Path = REPOSITORY,
        background: bool = False,
    ) -> None:
        """`env` is added to this process's environment; `module` runs instead of `services.<name>`; `root` has it.

        `background`: see `spawn`.
        """
        self.name = name
        self.log_path = log_path
        self.health_port = health_port
        self._env = dict(env)
        self._module = module or f"services.{name}"
        self._root = root
        self._background = background
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """Raises StackError if it was never started."""
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it. Raises StackError if it was never started."""
        return self._started().returncode

    def set(self, name: str, value: str) -> None:
        """A setting for the next start."""
        self._env[name] = value

    def start(self) -> None:
        """Starts the process and returns at once. Raises StackError if it runs or its health port is taken."""
        if self.running:
            raise StackError(f"{self.name} is running already (pid {self.pid}).")
        port_numbers.require_free(self.health_port, f"the health of {self.name}")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._child = spawn(
            [sys.executable, "-m", self._module],
            name=self.name,
            log_path=self.log_path,
            env=environment(self._env, self._root),
            cwd=self._root,
            background=self._background,
        )

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Waits until its health is SERVING. Raises StackError with the tail of its log if it ends or time is over."""
        deadline = time.monotonic() + timeout_s
        while (health := self._health()) != "SERVING":
            if not self.running:
                raise StackError(
                    f"{self.name} ended while starting (status {self.returncode}). "
                    f"The end of its log {self.log_path}:\n{tail(self.log_path)}"
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.name} was not ready within {timeout_s:.0f} s: its health on {HOST}:{self.health_port} is "
                    f"{health}. The end of its log {self.log_path}:\n{tail(self.log_path)}"
                )
            time.sleep(_POLL_S)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Sends a signal and, if it is SIGKILL, waits until the process is gone."""
        child = self._started()
        child.kill(signal_number)
        if signal_number == signal.SIGKILL and not child.wait(_KILL_TIMEOUT_S):
            raise StackError(f"{self.name} (pid {child.pid}) does not end, not even by SIGKILL: look for a hung disk.")

    def stop(self, timeout_s: float = 20) -> bool:
        """SIGTERM, then SIGKILL (said on stderr) if it is late. Whether it ended by itself; True if it was down."""
        if self._child is None or self._child.stop(signal.SIGTERM, timeout_s):
            return True
        progress.say(f"{self.name} did not end within {timeout_s:.0f} s of SIGTERM and was killed")
        return False

    def _health(self) -> str:
        if port_numbers.is_free(self.health_port):
            return "not listening"
        # A channel of its own for each look: a shared one waits longer and longer after each failure.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(f"{HOST}:{self.health_port}", options=options) as channel:
            request = health_pb2.HealthCheckRequest(service="")
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_HEALTH_TIMEOUT_S)
            except grpc.RpcError as error:
                return f"{error.code().name}"
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def _started(self) -> Child:
        if self._child is None:
            raise StackError(f"{self.name} was never started.")
        return self._child


class Services:
    """The migration and our services, on one broker and one database; a context manager."""

    def __init__(
        self,
        kafka_bootstrap: str,
        postgres_dsn: str,
        *,
        names: Sequence[str] = STOP_ORDER,
        ports: Ports | None = None,
        topic_prefix: str = "",
        env: Mapping[str, str] | None = None,
        log_dir: Path,
        partitions: int = 4,
        root: Path = REPOSITORY,
    ) -> None:
        """`ports` of None: free ones. `env` goes to every service too, and wins. `root`: whose code is run."""
        self.ports = ports or Ports.free()
        self.issuer_address = f"{HOST}:{self.ports.issuer}"
        self.dlq_address = f"{HOST}:{self.ports.dlq}"
        self._migrate_arguments = (kafka_bootstrap, postgres_dsn, partitions, topic_prefix)
        self._root = root
        shared = {
            "FIRSTCOME_KAFKA_BOOTSTRAP": kafka_bootstrap,
            "FIRSTCOME_POSTGRES_DSN": postgres_dsn,
            "FIRSTCOME_TOPIC_PREFIX": topic_prefix,
            "FIRSTCOME_AUTH": "off",
        }
        chosen = {
            "issuer": (self.ports.issuer, self.ports.issuer_health, self.ports.issuer_metrics),
            "ledger": (None, self.ports.ledger_health, self.ports.ledger_metrics),
            "dlq": (self.ports.dlq, self.ports.dlq_health, self.ports.dlq_metrics),
        }
        self.processes: dict[str, ServiceProcess] = {}
        self._listens: list[tuple[int, str]] = []
        for name in names:
            main, health, metrics = chosen[name]
            self._listens += [(health, f"the health of {name}"), (metrics, f"the metrics of {name}")]
            own = {"FIRSTCOME_HEALTH_LISTEN": f"{HOST}:{health}", "FIRSTCOME_METRICS_LISTEN": f"{HOST}:{metrics}"}
            if main is not None:
                own["FIRSTCOME_LISTEN"] = f"{HOST}:{main}"
                self._listens.append((main, name))
            self.processes[name] = ServiceProcess(
                name,
                {**shared, **own, **(env or {})},
                log_path=log_dir / f"{name}.log",
                health_port=health,
                root=root,
                background=name in BACKGROUND,
            )

    def start(self) -> None:
        """Migrates, starts all, and returns when all are ready. Raises StackError, with none left running."""
        # gRPC servers share a port without a word, and then each gets some of the calls: look first.
        for port, purpose in self._listens:
            port_numbers.require_free(port, purpose)
        kafka_bootstrap, postgres_dsn, partitions, topic_prefix = self._migrate_arguments
        migrate(kafka_bootstrap, postgres_dsn, partitions=partitions, topic_prefix=topic_prefix, root=self._root)
        try:
            for process in self.processes.values():
                process.start()
            for process in self.processes.values():
                process.wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends issuer, ledger and dlq one after the other. Idempotent."""
        for name in STOP_ORDER:
            if name in self.processes:
                self.processes[name].stop()

    def __enter__(self) -> "Services":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def migrate(
    kafka_bootstrap: str,
    postgres_dsn: str,
    *,
    partitions: int = 4,
    replication: int = 1,
    topic_prefix: str = "",
    env: Mapping[str, str] | None = None,
    root: Path = REPOSITORY,
) -> None:
    """Runs `python -m migrations`: creates missing topics and tables. Raises StackError with its output if it fails."""
    variables = environment(
        {
            "FIRSTCOME_KAFKA_BOOTSTRAP": kafka_bootstrap,
            "FIRSTCOME_POSTGRES_DSN": postgres_dsn,
            "FIRSTCOME_TOPIC_PARTITIONS": str(partitions),
            "FIRSTCOME_TOPIC_REPLICATION": str(replication),
            "FIRSTCOME_TOPIC_PREFIX": topic_prefix,
            **(env or {}),
        },
        root,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "migrations"],
            cwd=root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_MIGRATION_TIMEOUT_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        said = error.output.decode(errors="replace") if isinstance(error.output, bytes) else error.output or ""
        raise StackError(f"The migration did not end within {_MIGRATION_TIMEOUT_S} s. It said:\n{said}") from error
    if done.returncode != 0:
        raise StackError(f"The migration failed (status {done.returncode}). It said:\n{done.stdout[-8000:]}")


def environment(added: Mapping[str, str], root: Path = REPOSITORY) -> dict[str, str]:
    """This process's environment and `added`, with the checkout at `root` and its `protos` first on Python's path."""
    env = {**os.environ, **added}
    # `added` may bring a path of its own.
    path = [str(root), str(root / "protos"), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in path if entry)
    return env
