"""Client histories: what callers did and were told, one JSON object a line, written while they run.

Each call has an `invoke` line and, once it has ended, an `ok`, `fail` or `unknown` line with the same `id`::

    {"id": 7, "event": "ok", "time_ns": …, "coupon": "c", "user": "u", "request_id": "…", "ticket": "2-19",
     "state": "ISSUED", "reason": null, "sequence": 4}

`ok` is an answer, `fail` a refusal, `unknown` anything that leaves open what became of the request. The times of one
history must come from one clock that never goes back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from checker.classify import parse_ticket
from checker.records import Ticket


class HistoryError(Exception):
    """The file is no history; the message names the line."""


def steady_clock() -> Callable[[], int]:
    """A clock in nanoseconds since the epoch that does not go back within this process."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    return lambda: time.monotonic_ns() + offset_ns


@dataclass(frozen=True, slots=True)
class CallId:
    """A call that was invoked and has not ended yet."""

    number: int
    coupon_id: str
    user_id: str
    request_id: str


class HistoryWriter:
    """Writes a history; a context manager. `clock` gives nanoseconds. Raises OSError if the file can't be written."""

    def __init__(self, path: Path, clock: Callable[[], int] | None = None) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._clock = clock or steady_clock()
        self._calls = 0

    def invoke(self, coupon_id: str, user_id: str, request_id: str) -> CallId:
        """To be called before the request leaves."""
        self._calls += 1
        call = CallId(self._calls, coupon_id, user_id, request_id)
        self._write(call, "invoke", None, None, None, None)
        return call

    def ok(self, call: CallId, ticket: str | None, state: str, sequence: int | None = None) -> None:
        """An answer: ACCEPTED, or a verdict."""
        self._write(call, "ok", ticket, state, None, sequence)

    def fail(self, call: CallId, reason: str, ticket: str | None = None) -> None:
        """A refusal that says what holds; with a ticket it is the verdict of that place."""
        self._write(call, "fail", ticket, "REJECTED", reason, None)

    def unknown(self, call: CallId, reason: str | None = None) -> None:
        """No answer, or one that leaves open whether the request is in the line."""
        self._write(call, "unknown", None, None, reason, None)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(
        self,
        call: CallId,
        event: str,
        ticket: str | None,
        state: str | None,
        reason: str | None,
        sequence: int | None,
    ) -> None:
        line = {
            "id": call.number,
            "event": event,
            "time_ns": self._clock(),
            "coupon": call.coupon_id,
            "user": call.user_id,
            "request_id": call.request_id,
            "ticket": ticket,
            "state": state,
            "reason": reason,
            "sequence": sequence,
        }
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


@dataclass(frozen=True, slots=True)
class Told:
    """What one call was told about a ticket. `ended_ns` by the history's clock."""

    coupon_id: str
    user_id: str
    request_id: str
    ended_ns: int
    state: str
    reason: str | None
    sequence: int | None


@dataclass(slots=True)
class History:
    """An index of a history: by ticket what was told, and by request when it was first sent."""

    calls: int = 0
    unknown: int = 0
    told: dict[Ticket, list[Told]] = field(default_factory=dict)
    # Answers and refusals without a ticket: the issuer's own judgement, outside the line.
    told_without_ticket: list[Told] = field(default_factory=list)
    first_sent_ns: dict[tuple[str, str, str], int] = field(default_factory=dict)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> History:
        """Read one or more files of one clock. A cut last line (a killed client) is passed over.

        Raises HistoryError, OSError.
        """
        history = cls()
        for path in paths:
            sent: set[Any] = set()
            for line in _lines(path):
                history._take(line, sent)
            # Whoever never ended may still have been heard.
            history.unknown += len(sent)
        return history

    def _take(self, line: dict[str, Any], sent: set[Any]) -> None:
        key = (line["coupon"], line["user"], line["request_id"])
        event = line["event"]
        if event == "invoke":
            self.calls += 1
            sent.add(line["id"])
            self.first_sent_ns[key] = min(line["time_ns"], self.first_sent_ns.get(key, line["time_ns"]))
            return
        sent.discard(line["id"])
        if event == "unknown":
            self.unknown += 1
            return
        told = Told(*key, line["time_ns"], line["state"], line["reason"], line["sequence"])
        if line["ticket"] is None:
            self.told_without_ticket.append(told)
            return
        ticket = parse_ticket(line["ticket"])
        if ticket is None:
            raise HistoryError(f"{line['ticket']!r} is no ticket")
        self.told.setdefault(ticket, []).append(told)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith("\n"):
                return
            try:
                yield json.loads(text)
            except ValueError as error:
                raise HistoryError(f"{path}, line {number}, is no JSON: {error}") from error
