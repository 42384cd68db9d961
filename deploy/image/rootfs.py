"""Makes the image's root: Python, the shared libraries it needs, our code, and nothing else. Runs while it is built.

`python3 -I rootfs.py ROOT TREE…` copies this Python, its standard library without the parts that install or build
software, and each TREE to the same places below ROOT, with the shared libraries that any of it is linked to. All is
compiled (by hash, so that no time stands in it), readable by everyone and as old as SOURCE_DATE_EPOCH.
"""

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

USER = "firstcome:x:10001:10001::/opt/firstcome:/nonexistent\n"
GROUP = "firstcome:x:10001:\n"
HOSTS = "hosts: files dns\n"

# Package managers, what builds extensions, what needs a screen, what only developers use.
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "dist-packages", "config-3*", "distutils", "ensurepip", "idlelib", "lib2to3",
    "pydoc_data", "test", "tests", "tkinter", "turtledemo", "venv",
)  # fmt: skip


def main(root: Path, trees: list[Path]) -> None:
    copy(root, Path(sys.executable))
    for name in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}):
        target = below(root, real_parent(root, Path(name)))
        shutil.copytree(name, target, symlinks=True, ignore=LEFT_OUT, dirs_exist_ok=True)
    for tree in trees:
        shutil.copytree(tree, below(root, tree), symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for library in libraries(root):
        copy(root, library)
    if (cache := Path("/etc/ld.so.cache")).exists():  # where the loader finds what is not in its own places
        copy(root, cache)
    for name, text in (("passwd", USER), ("group", GROUP), ("nsswitch.conf", HOSTS)):
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc" / name).write_text(text)
    (root / "tmp").mkdir()
    compiled = compileall.compile_dir(
        root, maxlevels=99, stripdir=str(root), prependdir="/", quiet=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not compiled:
        sys.exit("some modules do not compile")
    normalise(root, int(os.environ.get("SOURCE_DATE_EPOCH") or 0))


def below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def copy(root: Path, file: Path) -> None:
    """The file, and every symbolic link on the way to it, at the same places below `root`."""
    target = below(root, real_parent(root, file))
    if not target.exists():
        shutil.copyfile(file, target)
        shutil.copymode(file, target)


def real_parent(root: Path, path: Path) -> Path:
    """Where `path` really is; the folders and links on the way are made below `root`."""
    at = Path("/")
    parts = list(path.parts[1:])
    while parts:
        at /= parts.pop(0)
        twin = below(root, at)
        if at.is_symlink():
            link = os.readlink(at)
            if not twin.is_symlink():
                twin.parent.mkdir(parents=True, exist_ok=True)
                twin.symlink_to(link)
            # `normpath` takes out "..": none of the folders on these ways is a link itself, for they are resolved.
            parts = [*Path(os.path.normpath(at.parent / link)).parts[1:], *parts]
            at = Path("/")
        elif parts:
            twin.mkdir(parents=True, exist_ok=True)
    return at


def libraries(root: Path) -> list[Path]:
    """What the programs and extensions below `root` are linked to, as this machine's loader finds it."""
    found = set()
    for file in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        with file.open("rb") as opened:
            if opened.read(4) != b"\x7fELF":
                continue
        # At its own place, where its libraries are beside it.
        said = subprocess.run(["ldd", str(Path("/") / file.relative_to(root))], capture_output=True, text=True)
        if "not found" in said.stdout:
            sys.exit(f"{file}: {said.stdout}")
        words = (line.split("=>")[-1].split()[0] for line in said.stdout.splitlines() if line.strip())
        found |= {Path(word) for word in words if word.startswith("/")}
    return sorted(found)


def normalise(root: Path, epoch: int) -> None:
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = 0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644
            path.chmod(0o1777 if path == root / "tmp" else mode)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
