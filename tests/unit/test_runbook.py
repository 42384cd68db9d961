"""What docs/runbook.md tells a person at night to type, to look for and to read exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from firstcome.cli import app
from services.domain.model import ParkReason
from services.ledger.consumer import TooManyDeadLetters
from services.runtime.postgres import BooksWrong
from services.runtime.progress import Halted, NotTheLog

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs/runbook.md").read_text(encoding="utf-8")
SOURCES = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "services").rglob("*.py"))


def commands() -> list[str]:
    blocks = "\n".join(TEXT.split("```")[1::2])
    parts = (part.strip() for line in blocks.splitlines() for part in line.split("|"))
    return [part for part in parts if part.startswith(("firstcome ", "xargs firstcome "))]


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_each_command_is_one_that_the_command_line_takes(line: str) -> None:
    words = shlex.split(line.removeprefix("xargs "), comments=True)[1:]
    if line.startswith("xargs "):
        words.append("0-1")
    command = typer.main.get_command(app)
    while (inner := getattr(command, "commands", {}).get(words[0] if words else "")) is not None:
        command, words = inner, words[1:]
    command.make_context("firstcome", words)  # parses them, and runs nothing


def test_each_reason_of_a_dead_letter_says_what_to_do() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (.+) \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert [name for name, meaning, act in rows if meaning and act] == [reason.value for reason in ParkReason]


def test_each_halt_is_named_with_the_words_of_its_message() -> None:
    table = TEXT.partition("## When a partition halts")[2].partition("## Away")[0]
    for halt in (TooManyDeadLetters, NotTheLog, BooksWrong, Halted):
        assert f"`{halt.__name__}: " in table
    for line in re.findall(r"^\| `(?:NotTheLog|Halted): ([^`]+)` \|", table, flags=re.MULTILINE):
        for words in line.split("…"):
            assert words.strip(" :") in SOURCES.replace('"\n                    f"', ""), words


def test_what_to_look_for_in_the_logs_is_what_is_logged() -> None:
    names = set(re.findall(r"`([a-z]+_[a-z_]+)`", TEXT))
    assert {"partition_halted", "partition_interrupted", "books_doubted"} <= names
    assert sorted(name for name in names if name not in SOURCES and not name.startswith("pg_")) == []
