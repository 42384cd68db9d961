"""Where the stack keeps things on disk."""

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from stack.errors import StackError

REPOSITORY: Final = Path(__file__).resolve().parent.parent
FREE_SPACE_MIN_BYTES: Final = 1 << 30
TEMPORARY_PREFIX: Final = "firstcome-"
_NOBODY: Final = -1  # a user who owns nothing


def cache_dir() -> Path:
    """The one folder for everything that is downloaded or prepared: `<repository>/.cache` or $FIRSTCOME_CACHE_DIR.

    Raises StackError if it cannot be created or written.
    """
    folder = Path(os.environ.get("FIRSTCOME_CACHE_DIR") or REPOSITORY / ".cache").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"The cache folder {folder} cannot be created ({error.strerror}). "
            "Set FIRSTCOME_CACHE_DIR to a folder that you may write."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StackError(
            f"The cache folder {folder} belongs to somebody else. Set FIRSTCOME_CACHE_DIR to one that you may write."
        )
    return folder


def require_free_space(folder: Path) -> None:
    """Raises StackError unless the file system of `folder` has FREE_SPACE_MIN_BYTES left."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < FREE_SPACE_MIN_BYTES:
        raise StackError(
            f"Only {free_bytes >> 20} MiB are free on the disk of {folder}, and Kafka and PostgreSQL need "
            f"{FREE_SPACE_MIN_BYTES >> 20} MiB. Free some space, or set TMPDIR (data) and FIRSTCOME_CACHE_DIR (cache) "
            "to folders on another disk."
        )


def temporary_folder() -> Path:
    """A fresh folder for data that is deleted at the end; anybody may pass through it, only the owner may list it.

    PostgreSQL refuses to run as root and then runs as another user, who must be able to reach its own folder inside.
    """
    parent = Path(tempfile.gettempdir())
    if os.geteuid() == 0 and not reachable(parent / TEMPORARY_PREFIX, _NOBODY, _NOBODY):
        parent = Path("/var/tmp")
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
    folder.chmod(0o711)
    return folder


def lasting_folder_for_everybody(name: str) -> Path:
    """A folder outside the checkout that lasts and that every user can reach: `/var/tmp/firstcome-<name>`.

    Raises StackError if somebody else has taken the name, since everybody may write in /var/tmp.
    """
    folder = Path("/var/tmp") / f"{TEMPORARY_PREFIX}{name}"
    folder.mkdir(mode=0o711, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise StackError(
            f"{folder} belongs to somebody else. Delete it, or put the checkout where every user can reach it."
        )
    return folder


def reachable(path: Path, uid: int, gid: int) -> bool:
    """Whether a user may pass through every folder above `path` (by mode bits; access control lists are not read)."""
    for folder in path.resolve().parents:
        status = folder.stat()
        if status.st_uid == uid:
            may_pass = status.st_mode & stat.S_IXUSR
        elif status.st_gid == gid:
            may_pass = status.st_mode & stat.S_IXGRP
        else:
            may_pass = status.st_mode & stat.S_IXOTH
        if not may_pass:
            return False
    return True


def delete_tree(folder: Path) -> None:
    """Deletes a folder and what the links inside it point to, as far as that is in a folder of ours.

    Raises StackError if something belongs to another user.
    """
    if not folder.exists():
        return
    try:
        for path in folder.glob("*/*"):
            if path.is_symlink() and path.resolve().parent.name.startswith(TEMPORARY_PREFIX):
                shutil.rmtree(path.resolve().parent)
        shutil.rmtree(folder)
    except OSError as error:
        raise StackError(
            f"The data of an earlier run in {folder} cannot be deleted ({error}). Delete them as the user who ran it."
        ) from error
