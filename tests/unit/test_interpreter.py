"""Which Python the virtual environment is made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stack import interpreter


@pytest.mark.parametrize(
    ("prefix", "configured", "optimized"),
    [
        ("/usr", "'--enable-shared' '--prefix=/usr'", True),  # Debian's
        ("/usr/local", "'--enable-optimizations' '--with-lto'", True),  # the image's
        ("/root/.pyenv/versions/3.11.7", "'--prefix=/root/.pyenv/versions/3.11.7' '--enable-shared'", False),
        ("/usr/local", "", False),
    ],
)
def test_what_is_optimized(prefix: str, configured: str, optimized: bool) -> None:
    assert interpreter.is_optimized(prefix, configured) is optimized


def _program(folder: Path, text: str) -> str:
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_optimized_python_asks_for_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(interpreter, "is_optimized", lambda prefix, configured: True)
    monkeypatch.setattr(interpreter, "DISTRIBUTIONS", _program(tmp_path, "exit 0"))
    assert interpreter.choose() == sys.executable


@pytest.mark.parametrize(
    ("answer", "taken"), [("exit 0", True), ("exit 1", False), ("kill -9 $$", False), (None, False)]
)
def test_the_distributions_is_taken_where_it_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str | None, taken: bool
) -> None:
    other = _program(tmp_path, answer) if answer is not None else str(tmp_path / "not there")
    monkeypatch.setattr(interpreter, "is_optimized", lambda prefix, configured: False)
    monkeypatch.setattr(interpreter, "DISTRIBUTIONS", other)
    assert interpreter.choose() == (other if taken else sys.executable)


@pytest.mark.parametrize(("oldest", "taken"), [("(3, 11)", True), ("(99, 0)", False)])
def test_what_the_other_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, oldest: str, taken: bool) -> None:
    other = _program(tmp_path, f'exec "{sys.executable}" "$@"')
    monkeypatch.setattr(interpreter, "is_optimized", lambda prefix, configured: False)
    monkeypatch.setattr(interpreter, "DISTRIBUTIONS", other)
    monkeypatch.setattr(interpreter, "_WILL_DO", interpreter._WILL_DO.replace("(3, 11)", oldest))
    assert interpreter.choose() == (other if taken else sys.executable)
