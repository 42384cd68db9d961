"""Client histories: what callers did and were told, one JSON object a line, written while they run.

Each call has an `invoke` line and, once it has ended, an `ok`, `fail` or `unknown` line with the same `id`::

    {"id": 7, "event": "ok", "time_ns": …, "coupon": "c", "user": "u", "request_id": "…", "ticket": "2-19",
     "state": "ISSUED", "reason": null, "sequence": 4}

`ok` is an answer, `fail` a refusal for a verdict's reason, `unknown` anything that leaves open what became of the
request. Each RPC is a call of its own, also where it repeats a `request_id`. The times of one history must come from
one clock that never goes back.
"""

from __future__ import annotations

import json
import sys
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


@dataclass(slots=True)
class Asked:
    """A request, which several calls may have made. `in_line`: how many records of it the line turned out to have."""

    coupon_id: str
    user_id: str
    request_id: str
    first_sent_ns: int
    calls: int = 0
    refused_without_ticket: int = 0
    in_line: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.coupon_id, self.user_id, self.request_id


@dataclass(frozen=True, slots=True)
class Told:
    """What one call was told. Times by the history's clock, in nanoseconds since the epoch."""

    asked: Asked
    sent_ns: int
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
    asked: dict[tuple[str, str, str], Asked] = field(default_factory=dict)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> History:
        """Read one or more files of one clock. A cut last line (a killed client) is passed over.

        Raises HistoryError, OSError.
        """
        history = cls()
        for path in paths:
            sent: dict[Any, int] = {}
            for number, line in _lines(path):
                try:
                    history._take(line, sent)
                except (KeyError, TypeError) as error:
                    raise HistoryError(f"{path}, line {number}, is no call's: {error!r}") from error
            # Whoever never ended may still have been heard.
            history.unknown += len(sent)
        return history

    def _take(self, line: dict[str, Any], sent: dict[Any, int]) -> None:
        event, time_ns = line["event"], int(line["time_ns"])
        if event == "invoke":
            self.calls += 1
            sent[line["id"]] = time_ns
            asked = self._asked(line, time_ns)
            asked.calls += 1
            asked.first_sent_ns = min(time_ns, asked.first_sent_ns)
            return
        sent_ns = sent.pop(line["id"])
        if event == "unknown":
            self.unknown += 1
            return
        asked = self._asked(line, sent_ns)
        state, reason = sys.intern(line["state"]), line["reason"]
        told = Told(asked, sent_ns, time_ns, state, reason and sys.intern(reason), line["sequence"])
        if line["ticket"] is None:
            self.told_without_ticket.append(told)
            asked.refused_without_ticket += state == "REJECTED"
            return
        ticket = parse_ticket(line["ticket"])
        if ticket is None:
            raise HistoryError(f"{line['ticket']!r} is no ticket")
        self.told.setdefault(ticket, []).append(told)

    def _asked(self, line: dict[str, Any], time_ns: int) -> Asked:
        """One object a request: a million calls of a history fit into memory."""
        key = (sys.intern(line["coupon"]), line["user"], line["request_id"])
        asked = self.asked.get(key)
        if asked is None:
            asked = self.asked[key] = Asked(*key, time_ns)
        return asked


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith("\n"):
                return
            try:
                yield number, json.loads(text)
            except ValueError as error:
                raise HistoryError(f"{path}, line {number}, is no JSON: {error}") from error
