"""`python -m stack up` and `down`, in a copy of the checkout whose services only answer their health check."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from stack import Ports, free_port, locations, ports
from tests.integration.test_stack import HEALTHY, fetch

LEDGER_HEALTH = 50052
METRICS = {"ISSUER": 9464, "LEDGER": 9465, "DLQ": 9466}


class Checkout:
    """A copy of the stack, with stand-ins for what it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kafka_port = free_port()
        self.postgres_port = free_port()
        self.dsn = f"postgresql://firstcome@127.0.0.1:{self.postgres_port}/firstcome"
        shutil.copytree(locations.REPOSITORY / "stack", folder / "stack")
        for name in ("issuer", "ledger", "dlq"):
            self.service(name, HEALTHY)
        (folder / "migrations").mkdir()
        for package in ("services", "migrations"):  # else the packages of the checkout on PYTHONPATH go before them
            (folder / package / "__init__.py").touch()
        (folder / "migrations" / "__main__.py").write_text("")
        cache = folder / ".cache"
        cache.mkdir()
        for engine in ("kafka", "postgres"):  # the downloads of the real checkout
            (cache / engine).symlink_to(locations.cache_dir() / engine)

    def service(self, name: str, program: str) -> None:
        path = self.folder / "services" / name / "__main__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)

    def run(self, command: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FIRSTCOME_")}
        if command == "up":
            options = (*options, f"--kafka-port={self.kafka_port}", f"--postgres-port={self.postgres_port}")
        return subprocess.run(
            [sys.executable, "-m", "stack", command, *options],
            cwd=self.folder,
            env={**kept, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait_until_down(self) -> None:
        deadline = time.monotonic() + 20
        while not self.down():
            assert time.monotonic() < deadline, "something still runs"
            time.sleep(0.1)

    def down(self) -> bool:
        """Whether no engine listens and no process works in this folder."""
        return ports.is_free(self.kafka_port) and ports.is_free(self.postgres_port) and not self.processes()

    def processes(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended, or it is somebody else's
                if (process / "cwd").readlink().is_relative_to(self.folder):
                    found.append(int(process.name))
        return found

    def up(self, **env: str) -> subprocess.CompletedProcess[str]:
        """At free ports: the system may give the documented ones to any connection at any time."""
        return self.run("up", "--free-ports", **env)


def documented_ports_are_free() -> bool:
    return all(ports.is_free(port) for port in astuple(Ports()))


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    # Everybody may pass: the server's user has to.
    folder = locations.temporary_folder().resolve()
    copy = Checkout(folder)
    yield copy
    copy.run("down")
    shutil.rmtree(folder)


def test_up_prints_the_addresses_and_down_stops_everything(checkout: Checkout) -> None:
    done = checkout.up()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"KAFKA 127.0.0.1:{checkout.kafka_port}" in lines
    assert f"POSTGRES {checkout.dsn}" in lines
    issuer = next(line.removeprefix("ISSUER ") for line in lines if line.startswith("ISSUER 127"))
    assert sum("grpcurl" in line and f" {issuer} " in line for line in lines) == 3
    listening = [int(line.rsplit(":", 1)[1]) for line in lines if " health " in line]
    assert len(listening) == 3
    assert not any(ports.is_free(port) for port in listening)
    told = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", done.stdout)}
    assert len(told) == 10
    assert told.isdisjoint(astuple(Ports()))
    assert checkout.processes()
    again = checkout.up()
    assert again.returncode == 0
    assert again.stdout.splitlines()[0].startswith("Already running")
    assert again.stdout.splitlines()[1:] == lines
    assert checkout.run("down").stdout == "Stopped.\n"
    assert checkout.down()
    assert checkout.run("down").stdout == "Not running.\n"


def test_the_ports_are_the_documented_ones_unless_others_are_asked_for(checkout: Checkout) -> None:
    done = checkout.run("up")
    if "is taken" in done.stderr:
        assert "make up ARGS=--free-ports" in done.stderr
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert {
        *("ISSUER 127.0.0.1:50051", "DLQ 127.0.0.1:50053"),
        *("ISSUER health 127.0.0.1:50061", "LEDGER health 127.0.0.1:50052", "DLQ health 127.0.0.1:50063"),
        *(f"{name} metrics http://127.0.0.1:{port}/metrics" for name, port in METRICS.items()),
    } <= set(done.stdout.splitlines())
    checkout.run("down")


def test_a_documented_port_that_is_taken_is_named_with_the_way_out(checkout: Checkout) -> None:
    with socket.socket() as taking:
        taking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taking.bind((ports.HOST, LEDGER_HEALTH))
        except OSError:
            pytest.skip("somebody else has it")
        taking.listen()
        done = checkout.run("up")
    assert done.returncode == 1
    assert " is taken." in done.stderr
    if documented_ports_are_free():  # else another one may have been found first
        assert f"Port {LEDGER_HEALTH} on 127.0.0.1, wanted for ledger health, is taken." in done.stderr
    assert "make up ARGS=--free-ports" in done.stderr
    assert checkout.down()


def test_data_are_kept_only_when_asked_and_everything_stops_when_an_engine_ends(checkout: Checkout) -> None:
    assert checkout.up().returncode == 0
    fetch(checkout.dsn, "CREATE TABLE kept AS SELECT 42 AS number")
    postmaster = str(fetch(checkout.dsn, "SELECT pg_read_file('postmaster.pid')"))
    os.kill(int(postmaster.split()[0]), signal.SIGKILL)
    checkout.wait_until_down()
    assert "PostgreSQL has ended (status -9)" in (checkout.folder / ".cache" / "up" / "owner.log").read_text()
    assert checkout.up(KEEP="1").returncode == 0
    assert fetch(checkout.dsn, "SELECT number FROM kept") == 42
    checkout.run("down")
    assert checkout.up().returncode == 0
    assert fetch(checkout.dsn, "SELECT to_regclass('kept')::text") is None
    checkout.run("down")


def test_a_service_that_cannot_start_stops_everything_and_says_why(checkout: Checkout) -> None:
    checkout.service("dlq", "raise SystemExit('no such topic')")
    done = checkout.up()
    assert done.returncode == 1
    assert "no such topic" in done.stderr
    assert checkout.down()
