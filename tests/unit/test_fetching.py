"""What an answer of the broker holds, and how a reader goes on behind one that it can't take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException, OffsetOutOfRangeError, RecordTooLargeError

from services.runtime.fetching import Fetched
from services.runtime.kafka import KafkaAway, Message, OutOfLog, PartitionReader, records_again, to_records
from tests.unit import batches
from tests.unit.batches import reader_of, with_checksum

_COMPRESSED, _CONTROL = 0x01, 0x20


def batch(base: int, *values: bytes, attributes: int = 0) -> bytes:
    """As it is in the log."""
    messages = [Message(b"key", value, [("name", value), ("none", None)]) for value in values]
    return batches.batch(base, messages, attributes=attributes)


def odd(raw: bytes) -> bytes:
    """With a header's name that is no UTF-8."""
    return with_checksum(raw.replace(b"name", b"na\xffe"))


def taken(fetched: Fetched, step: int = 2) -> list[tuple[int, bytes | None]]:
    found: list[tuple[int, bytes | None]] = []
    while records := fetched.take(step):
        found += [(record.offset, record.value) for record in records]
    return found


def test_records_before_the_offset_markers_and_what_is_cut_off_are_left_out() -> None:
    raw = batch(3, b"a", b"b", b"c") + batch(6, b"marker", attributes=_CONTROL) + batch(9, b"d") + batch(10, b"e")[:-1]
    fetched = Fetched(raw, 4, 11)
    assert (fetched.next_offset, fetched.log_end) == (10, 11)
    assert taken(fetched) == [(4, b"b"), (5, b"c"), (9, b"d")]
    assert fetched.offset == 10


def test_an_answer_that_ends_with_markers_goes_on_behind_them() -> None:
    fetched = Fetched(batch(3, b"a") + batch(4, b"marker", attributes=_CONTROL), 3, 5)
    assert taken(fetched) == [(3, b"a")]
    assert fetched.offset == 5


def test_nothing_is_an_answer_but_less_than_a_batch_is_none() -> None:
    assert taken(Fetched(b"", 7, 7)) == []
    with pytest.raises(RecordTooLargeError):
        Fetched(batch(7, b"a")[:-1], 7, 8)


def test_a_name_that_is_not_utf8_is_read_with_backslashes_from_where_it_was_met() -> None:
    raw = batch(0, b"a", b"b") + odd(batch(2, b"c")) + batch(3, b"d")
    fetched = Fetched(raw, 1, 4)
    found = [record for _ in range(3) for record in fetched.take(2)]
    assert [(record.offset, record.value, record.headers[0][0]) for record in found] == [
        (1, b"b", "name"),
        (2, b"c", "na\\xffe"),
        (3, b"d", "name"),
    ]


def test_records_are_found_again_in_what_they_came_with() -> None:
    raw = batch(0, b"a", b"b") + odd(batch(2, b"c")) + batch(3, b"d", b"e")
    first, second = Fetched(raw, 1, 7), Fetched(batch(5, b"f", b"g"), 5, 7)
    kept = {record.offset: record for answer in (first, second) for record in to_records(answer.take(10))}
    assert list(kept) == [1, 2, 3, 4, 5, 6]
    assert records_again([first, second], {1, 2, 4, 6, 8}) == {offset: kept[offset] for offset in (1, 2, 4, 6)}
    assert taken(first) == taken(second) == []


def test_what_is_behind_a_record_that_is_found_again_is_not_looked_at() -> None:
    broken = bytearray(batch(2, b"c"))
    broken[-1] ^= 1
    fetched = Fetched(batch(0, b"a", b"b") + broken, 0, 3)
    assert records_again([fetched], {1}) == {record.offset: record for record in to_records(fetched.take(2)[1:])}
    with pytest.raises(KafkaAway, match="checksum"):
        records_again([fetched], {2})


@pytest.mark.parametrize("last", [b"d", b"d" * 3_000])
def test_of_records_that_tell_nothing_the_last_is_enough(last: bytes) -> None:
    raw = batch(0, b"a", b"b") + batch(2, b"c" * 200, last)
    whole = to_records(Fetched(raw, 1, 4).take(9))
    fetched = Fetched(raw + batch(4, b"e")[:-1], 1, 5)
    assert to_records(fetched.skim(b"telling")) == whole[-1:]
    assert (fetched.offset, fetched.skim(b"telling"), fetched.take(9), fetched.offset) == (4, [], [], 4)


@pytest.mark.parametrize(
    "raw",
    [
        batch(0, b"a", b"telling", b"c") + batch(3, b"d"),
        batch(0, b"a", b"b", b"c") + batch(3, b"d", attributes=_COMPRESSED),
        batch(0, b"a", b"b", b"c") + batch(3, b"marker", attributes=_CONTROL),
        batch(0, b"a", b"b", b"c") + batch(3),
        batch(0, b"a", b"b", b"c") + odd(batch(3, b"d")),
    ],
)
def test_records_that_may_tell_something_are_all_taken(raw: bytes) -> None:
    fetched = Fetched(raw, 0, 4)
    assert fetched.skim(b"telling") == []
    assert [record.value for record in fetched.take(3)][::2] == [b"a", b"c"]


def test_neither_nothing_nor_a_batch_without_its_checksum_is_skimmed() -> None:
    assert Fetched(b"", 0, 0).skim(b"telling") == []
    broken = Fetched(batch(0, b"a")[:-1] + b"x" + batch(1, b"b"), 0, 2)
    assert broken.skim(b"telling") == []
    with pytest.raises(CorruptRecordException):
        broken.take(2)


def test_what_is_left_of_a_half_taken_answer_is_taken() -> None:
    fetched = Fetched(batch(0, b"a", b"b", b"c"), 0, 3)
    assert [record.value for record in fetched.take(1)] == [b"a"]
    assert fetched.skim(b"telling") == []
    assert taken(fetched) == [(1, b"b"), (2, b"c")]


class Log:
    """Gives these answers, in their order; an exception is raised."""

    def __init__(self, *answers: bytes | Exception, end: int) -> None:
        self._answers = list(answers)
        self._end = end
        self.asked: list[int] = []

    async def start(self) -> None:
        """There at once."""

    async def fetch(self, offset: int, **_: Any) -> Fetched:
        self.asked.append(offset)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Fetched(answer, offset, self._end)


async def polled(reader: PartitionReader, count: int) -> Sequence[bytes | None]:
    records = await reader.poll(max_records=count, timeout_ms=1_000)
    await asyncio.sleep(0)  # what it has asked for goes out
    return [record.value for record in records]


async def test_a_batch_without_its_checksum_is_never_taken_and_asked_for_again() -> None:
    broken = bytearray(batch(1, b"b"))
    broken[-1] ^= 1
    log = Log(batch(0, b"a") + broken, batch(1, b"b"), end=2)
    reader = reader_of(log)
    assert await polled(reader, 1) == [b"a"]
    with pytest.raises(KafkaAway, match="checksum"):
        await polled(reader, 1)
    assert reader.position() == 1
    assert await polled(reader, 1) == [b"b"]
    assert log.asked == [0, 1]


async def test_what_comes_next_is_asked_for_while_something_is_left_and_only_if_it_is_there() -> None:
    log = Log(batch(0, b"a", b"b"), batch(2, b"c"), end=3)
    reader = reader_of(log)
    assert await polled(reader, 1) == [b"a"]
    assert await polled(reader, 1) == [b"b"]
    assert log.asked == [0, 2]
    assert await polled(reader, 1) == [b"c"]
    assert await reader.poll(max_records=1, timeout_ms=0) == []
    assert log.asked == [0, 2]
    assert (reader.position(), reader.known_end()) == (3, 3)


async def test_a_seek_forgets_what_was_fetched_and_an_error_that_nobody_asked_for() -> None:
    log = Log(batch(0, b"a", b"b"), OffsetOutOfRangeError(), batch(7, b"x"), OffsetOutOfRangeError(), end=9)
    reader = reader_of(log)
    assert await polled(reader, 1) == [b"a"]
    assert await polled(reader, 1) == [b"b"]
    await reader.seek(7)
    assert await polled(reader, 1) == [b"x"]
    with pytest.raises(OutOfLog):
        await polled(reader, 1)
    assert log.asked == [0, 2, 7, 8]
