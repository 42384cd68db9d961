"""The embedded stack: real engines, real signals."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stack import ServiceProcess, Services, Stack, StackError, blocking, download, free_port, leftovers, locations
from stack.identity import ProcessIdentity, descendants, identify

OWNER = """
import json, os, sys, time
from stack import Stack
with Stack.start() as stack:
    print(json.dumps({"pids": [stack.kafka.pid, stack.postgres.pid],
                      "folder": str(stack.kafka.log_path.parent.parent)}))
    sys.stdout.flush()
    time.sleep(120)
"""

HEALTHY = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port(os.environ["FIRSTCOME_HEALTH_LISTEN"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit() if "DEAF" not in os.environ else print("not yet", flush=True))
server.start()
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FIRSTCOME_KAFKA_BOOTSTRAP", raising=False)
        patch.delenv("FIRSTCOME_POSTGRES_DSN", raising=False)
        with Stack.start(postgres_settings={"work_mem": "5MB"}) as started:
            yield started


def fetch(dsn: str, statement: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn, timeout=5)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return blocking.run(ask)


def publish(bootstrap: str, topic: str, value: bytes) -> None:
    async def send() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
        await admin.close()
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True) as producer:
            await producer.send_and_wait(topic, value)

    blocking.run(send)


def consume(bootstrap: str, topic: str) -> bytes:
    async def read() -> bytes:
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=f"readers-{topic}", auto_offset_reset="earliest"
        ) as consumer:
            return bytes((await consumer.getone()).value or b"")

    return blocking.run(read)


def test_both_engines_answer_with_the_settings_asked_for(stack: Stack) -> None:
    assert fetch(stack.postgres_dsn, "SELECT current_user || ' ' || current_database()") == "firstcome firstcome"
    assert fetch(stack.postgres_dsn, "SHOW work_mem") == "5MB"
    assert fetch(stack.postgres_dsn, "SHOW shared_buffers") == "256MB"
    assert fetch(stack.postgres_dsn, "SHOW fsync") == "on"
    assert str(fetch(stack.postgres_dsn, "SHOW server_version_num")) >= "180000"
    publish(stack.kafka_bootstrap, "answers", b"hello")
    assert consume(stack.kafka_bootstrap, "answers") == b"hello"


def test_a_created_database_is_empty_and_its_name_is_then_taken(stack: Stack) -> None:
    dsn = stack.create_database("fresh-one")
    assert dsn.endswith("/fresh-one")
    assert fetch(dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    with pytest.raises(StackError, match="already exists"):
        stack.create_database("fresh-one")


def test_an_engine_killed_and_started_again_keeps_its_data(stack: Stack) -> None:
    fetch(stack.postgres_dsn, "CREATE TABLE kept AS SELECT 42 AS number")
    publish(stack.kafka_bootstrap, "kept", b"still here")
    for engine in (stack.kafka, stack.postgres):
        first = engine.pid
        engine.kill(signal.SIGKILL)
        assert engine.returncode == -signal.SIGKILL
        engine.start()
        engine.wait_ready()
        assert engine.pid != first
    assert fetch(stack.postgres_dsn, "SELECT number FROM kept") == 42
    assert consume(stack.kafka_bootstrap, "kept") == b"still here"


def test_a_frozen_engine_answers_again_once_thawed(stack: Stack) -> None:
    stack.postgres.kill(signal.SIGSTOP)
    with pytest.raises(StackError, match=r"(?s)not ready within 0 s.*end of its log"):
        stack.postgres.wait_ready(timeout_s=0.2)
    stack.postgres.kill(signal.SIGCONT)
    stack.postgres.wait_ready(timeout_s=10)


def test_servers_of_the_environment_are_used_and_left_alone(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTCOME_KAFKA_BOOTSTRAP", stack.kafka_bootstrap)
    monkeypatch.setenv("FIRSTCOME_POSTGRES_DSN", stack.postgres_dsn)
    with Stack.start() as given:
        assert given.kafka_bootstrap == stack.kafka_bootstrap
        assert fetch(given.create_database("given"), "SELECT 1") == 1
        with pytest.raises(StackError, match="given by the environment"):
            given.kafka.kill(signal.SIGKILL)
    stack.kafka.wait_ready(timeout_s=1)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_owner_ended_by(signal_number: signal.Signals) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("FIRSTCOME_") or "CACHE" in key}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=locations.REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout is not None
    with owner, owner.stdout:
        said = json.loads(owner.stdout.readline())
        family = identities([*said["pids"], *descendants(said["pids"][1])])
        assert len(family) > 2
        owner.send_signal(signal_number)
        assert owner.wait(20) == {signal.SIGTERM: 143, signal.SIGKILL: -9}.get(signal_number, owner.returncode)
    deadline = time.monotonic() + 10
    while (alive := [process for process in family if process.alive()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []
    if signal_number == signal.SIGKILL:
        assert any(said["folder"] in line for line in leftovers.sweep())
    assert not Path(said["folder"]).exists()


def identities(pids: list[int]) -> list[ProcessIdentity]:
    return [identity for pid in pids if (identity := identify(pid)) is not None]


def test_a_taken_port_is_named(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"Port {port} on 127\.0\.0\.1, wanted for Kafka, is taken"):
            Stack.start(kafka_port=port)
    port = int(stack.kafka_bootstrap.rpartition(":")[2])
    with pytest.raises(StackError, match=rf"Port {port} .* PostgreSQL, is taken"):
        Stack.start(postgres_port=port)


def test_a_full_disk_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))
    with pytest.raises(StackError, match="Only 100 MiB are free"):
        Stack.start()


def test_a_jar_with_one_changed_byte_is_refused(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(locations.cache_dir() / "kafka" / "jars", tmp_path / "kafka" / "jars")
    monkeypatch.setenv("FIRSTCOME_CACHE_DIR", str(tmp_path))
    jars = ensure_jars()
    victim = next(jar for jar in jars if "kafka-clients" in jar.name)
    before = victim.stat()
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StackError, match=rf"{victim.name} is not the file that kafka\.lock names"):
        ensure_jars()


def test_a_refused_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTCOME_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(download, "_TRIES_MAX", 1)
    with pytest.raises(StackError, match=r"could not be downloaded .*FIRSTCOME_KAFKA_BOOTSTRAP"):
        ensure_jars()
    assert list((tmp_path / "kafka" / "jars").iterdir()) == []


def ensure_jars() -> list[Path]:
    return download.ensure_jars(cancelled=threading.Event())


def service(tmp_path: Path, program: str, env: dict[str, str] | None = None) -> ServiceProcess:
    (tmp_path / "a_service.py").write_text(program)
    port = free_port()
    return ServiceProcess(
        "fake",
        {"PYTHONPATH": str(tmp_path), "FIRSTCOME_HEALTH_LISTEN": f"127.0.0.1:{port}", **(env or {})},
        log_path=tmp_path / "log" / "fake.log",
        health_port=port,
        module="a_service",
    )


def test_a_service_is_ready_when_its_health_is_serving_and_ends_at_sigterm(tmp_path: Path) -> None:
    process = service(tmp_path, HEALTHY)
    process.start()
    process.wait_ready()
    with pytest.raises(StackError, match="running already"):
        process.start()
    assert process.stop()
    assert process.returncode == 0
    process.start()
    process.wait_ready()
    process.kill(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert process.stop()


def test_all_but_the_issuer_interrupt_nobody_when_they_wake(stack: Stack, tmp_path: Path) -> None:
    for name in ("issuer", "ledger", "dlq"):
        (tmp_path / "services" / name).mkdir(parents=True)
        (tmp_path / "services" / name / "__main__.py").write_text(HEALTHY)
    (tmp_path / "services" / "__init__.py").touch()
    services = Services("unused", "unused", log_dir=tmp_path, root=tmp_path)
    try:
        for process in services.processes.values():
            process.start()
            process.wait_ready()
        pids = {name: process.pid for name, process in services.processes.items()}
        assert os.sched_getscheduler(pids["issuer"]) == os.SCHED_OTHER
        behind = [pids["ledger"], pids["dlq"], stack.kafka.pid, stack.postgres.pid, *descendants(stack.postgres.pid)]
        assert {os.sched_getscheduler(pid) for pid in behind} == {os.SCHED_BATCH}
    finally:
        services.stop()


def test_a_service_that_ignores_sigterm_is_killed_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = service(tmp_path, HEALTHY, {"DEAF": "1"})
    process.start()
    process.wait_ready()
    assert not process.stop(timeout_s=0.3)
    assert process.returncode == -signal.SIGKILL
    assert "fake did not end within 0 s of SIGTERM and was killed" in capsys.readouterr().err


def test_a_service_that_ends_while_starting_says_why(tmp_path: Path) -> None:
    process = service(tmp_path, "raise SystemExit('the topic has 12 partitions, not 4')")
    process.start()
    with pytest.raises(StackError, match=r"(?s)fake ended while starting \(status 1\).*12 partitions, not 4"):
        process.wait_ready()


def test_a_service_that_never_gets_ready_says_why(tmp_path: Path) -> None:
    process = service(tmp_path, "import time; print('waiting for Kafka', flush=True); time.sleep(60)")
    process.start()
    deadline_s = time.monotonic() + 30
    while "waiting for Kafka" not in process.log_path.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    with pytest.raises(StackError, match=r"(?s)not ready within 1 s: .* not listening\..*waiting for Kafka"):
        process.wait_ready(timeout_s=1)
    process.stop()
