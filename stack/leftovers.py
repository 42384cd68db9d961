"""What this process owns, written down, so that a later one can clear away what a killed owner left behind.

The kernel ends children with their owner (see child.py); this is the second net, and the only one for folders.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Final

from stack.identity import ProcessIdentity, identify, machine
from stack.locations import TEMPORARY_PREFIX, cache_dir

_lock = threading.RLock()
_owner_pid = 0
_children: dict[int, ProcessIdentity] = {}
_folders: set[Path] = set()

_RECORDS: Final = "owners"


def remember_child(pid: int) -> None:
    """Writes down a child of this process."""
    identity = identify(pid)
    if identity is not None:
        with _lock:
            _forget_what_a_fork_copied()
            _children[pid] = identity
            _write()


def forget_child(pid: int) -> None:
    """Strikes out a child that has ended."""
    with _lock:
        if _children.pop(pid, None) is not None:
            _write()


def remember_folder(folder: Path) -> None:
    """Writes down a temporary folder of this process."""
    with _lock:
        _forget_what_a_fork_copied()
        _folders.add(folder)
        _write()


def delete_folder(folder: Path) -> None:
    """Deletes a temporary folder and strikes it out."""
    shutil.rmtree(folder, ignore_errors=True)
    with _lock:
        _folders.discard(folder)
        _write()


def sweep() -> list[str]:
    """Ends the processes and deletes the folders of owners that are gone; returns a line for each thing done.

    Nothing is touched unless its owner wrote it down and has ended, and, for processes, pid and start time agree.
    """
    done: list[str] = []
    for record_path in sorted((cache_dir() / _RECORDS).glob("*.json")):
        try:
            record = json.loads(record_path.read_text())
            same_machine = record["machine"] == machine()
            owner = ProcessIdentity(*record["owner"])
            children = [ProcessIdentity(*child) for child in record["children"]]
            folders = [Path(folder) for folder in record["folders"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same_machine and owner.alive():
            continue
        if not same_machine and record["machine"].split()[0] == machine().split()[0]:
            continue  # another container of this boot: its pids mean nothing here, and it may well be alive
        with contextlib.suppress(PermissionError):
            for child in children:
                if same_machine and child.alive():
                    os.kill(child.pid, signal.SIGKILL)
                    done.append(f"ended process {child.pid}, left by an earlier run")
            for folder in folders:
                if folder.name.startswith(TEMPORARY_PREFIX) and folder.is_dir() and not folder.is_symlink():
                    shutil.rmtree(folder, ignore_errors=True)
                    done.append(f"deleted {folder}, left by an earlier run")
            record_path.unlink(missing_ok=True)
    return done


def _forget_what_a_fork_copied() -> None:
    global _owner_pid
    if _owner_pid != os.getpid():
        _owner_pid = os.getpid()
        _children.clear()
        _folders.clear()
        atexit.register(_at_exit)


def _at_exit() -> None:
    if _owner_pid == os.getpid():
        with _lock:
            _write()


def _write() -> None:
    owner = identify(os.getpid())
    if owner is None:
        return
    record_path = cache_dir() / _RECORDS / f"{owner.pid}-{owner.started_ticks}.json"
    if not _children and not _folders:
        record_path.unlink(missing_ok=True)
        return
    record_path.parent.mkdir(exist_ok=True)
    record = {
        "machine": machine(),
        "owner": [owner.pid, owner.started_ticks],
        "children": [[child.pid, child.started_ticks] for child in _children.values()],
        "folders": [str(folder) for folder in sorted(_folders)],
    }
    # Renamed into place: an owner killed in the middle leaves the old record, never half a one.
    draft = record_path.with_suffix(".draft")
    draft.write_text(json.dumps(record))
    draft.replace(record_path)
