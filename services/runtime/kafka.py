"""Kafka as the services use it: topics and header names, one supervised producer, one reader of one partition.

Everything here speaks in offsets and `Record`s, or the parser's own where they are not kept; every error that means
"the other side is away" is raised as `KafkaAway`, every answer that leaves open whether a record is in the log as
`DeliveryUnknown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.partitioner import murmur2

import services.runtime.aiokafka_patches  # noqa: F401 - of aiokafka everywhere
from services.domain.model import maker
from services.runtime import kafka_security, metrics
from services.runtime.fetching import EARLIEST, FETCH_WAIT_MS, LATEST, Fetched, LogRecord, PartitionLog
from services.runtime.log import get_logger

log = get_logger(__name__)

CE_ID = "ce_id"
CE_TYPE = "ce_type"
TRACEPARENT = "traceparent"
AWAITED = "verdict-awaited"
"""Of a record whose sender waited for the verdict when it was first sent. It affects nothing but how long a ledger
gathers before its next batches."""
REDRIVE_OF = "redrive-of"
REDRIVE_ORIGINAL_TIMESTAMP = "redrive-original-timestamp"
REDRIVE_ATTEMPT = "redrive-attempt"
DLQ_ORIGINAL_TOPIC = "dlq-original-topic"
DLQ_ORIGINAL_PARTITION = "dlq-original-partition"
DLQ_ORIGINAL_OFFSET = "dlq-original-offset"
DLQ_ORIGINAL_TIMESTAMP = "dlq-original-timestamp"
DLQ_REASON = "dlq-reason"
DLQ_ERROR_MESSAGE = "dlq-error-message"
DLQ_ATTEMPT = "dlq-attempt"
DLQ_FIRST_FAILED_AT = "dlq-first-failed-at"

LINE_MESSAGE_BYTES_MAX = 1_048_576
"""Default of the line's max.message.bytes; what is fetched and dead-lettered may be DLQ_ALLOWANCE_BYTES larger."""
DLQ_ALLOWANCE_BYTES = 65_536
BATCH_BYTES_MAX = 512 * 1024
STEP_MESSAGES = 200
"""How many messages are put into batches, less than 1 ms, before other tasks get their turn."""
REQUEST_TIMEOUT_MS = 10_000
DELIVERY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class KafkaAway(Exception):
    """Kafka does not answer, or not as it should; the same call may work later."""


class DeliveryUnknown(KafkaAway):
    """A send failed or timed out: the records may be in the log, now or later, or not."""


class OutOfLog(Exception):
    """The position asked for is not in the log: it begins later or ends earlier."""


class WrongTopics(Exception):
    """A topic is missing or has settings under which the promises do not hold; the message says what to change."""


class MissingTopics(WrongTopics):
    """A topic is not there yet."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The three topics' names; a prefix sets several systems on one cluster apart."""

    prefix: str = ""

    @property
    def line(self) -> str:
        return f"{self.prefix}coupon.issue-requests.v1"

    @property
    def dlq(self) -> str:
        return f"{self.prefix}coupon.issue-requests.v1.dlq"

    @property
    def outcomes(self) -> str:
        return f"{self.prefix}coupon.issue-outcomes.v1"


class Record(NamedTuple):
    """A record read from a partition. `timestamp_ms` is the broker's LogAppendTime on the line.

    A NamedTuple like the other values of which there is one for each request: three times cheaper to make than a
    frozen dataclass, and as immutable.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def timestamp(self) -> int:
        """So that a Record is a LogRecord."""
        return self.timestamp_ms

    def checksum(self) -> int:
        """CRC-32 over key, value and headers, lengths included."""
        crc = 0
        parts: list[bytes | None] = [self.key, self.value]
        for name, value in self.headers:
            parts += (name.encode(), value)
        for part in parts:
            length = -1 if part is None else len(part)
            crc = zlib.crc32(part or b"", zlib.crc32(length.to_bytes(8, "big", signed=True), crc))
        return crc

    def size(self) -> int:
        """Bytes of key, value and headers."""
        size = len(self.key or b"") + len(self.value or b"")
        return size + sum(len(name.encode()) + len(value or b"") for name, value in self.headers)

    def header(self, name: str) -> bytes | None:
        """The first header of that name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Message(NamedTuple):
    """A record to be appended."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


make_record, make_message = maker(Record), maker(Message)


class Appended(NamedTuple):
    """Where the broker put a message, and when (LogAppendTime; -1 on a topic with CreateTime)."""

    offset: int
    timestamp_ms: int


make_appended = maker(Appended)


def home_partition(key: bytes, partition_count: int) -> int:
    """The partition that Kafka's default partitioner gives a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partition_count)


class RecordProducer:
    """An idempotent `acks=all` producer that replaces itself by a new one after an error that could wedge it.

    aiokafka's idempotent producer answers OutOfOrderSequenceNumber for ever after one rejected or expired batch
    (its issue 1017), and may hang with brokers down (1101): so each append is bounded, and after any failure the next
    append starts with a new producer id.
    """

    def __init__(self, bootstrap: str, client_id: str, *, delivery_timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._delivery_timeout_s = delivery_timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self.recycled_count = 0

    async def start(self) -> None:
        """Connect. Raises KafkaAway."""
        await self._current()

    async def append(self, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
        """Append messages to one partition in their order; returns once the broker has acknowledged all of them.

        A full batch is sent while further messages are still taken.

        Raises KafkaAway if nothing was sent, DeliveryUnknown if some of it may be in the log. Callers keep to one
        append a partition at a time where the order between appends matters.
        """
        producer = await self._current()
        try:
            async with asyncio.timeout(self._delivery_timeout_s):
                return await self._append(producer, topic, partition, messages)
        except (KafkaError, TimeoutError) as error:
            metrics.DEPENDENCY_ERRORS.add(1, metrics.KAFKA)
            self._retire(producer)
            raise DeliveryUnknown(f"{topic}/{partition}: {type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        """Flush what is under way and close, within STOP_TIMEOUT_S."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop_producer(producer)
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=STOP_TIMEOUT_S)

    async def _append(self, producer: Any, topic: str, partition: int, messages: Iterable[Message]) -> list[Appended]:
        sent: list[tuple[int, asyncio.Future[Any]]] = []

        async def send() -> None:
            batch._relative_offset = count
            sent.append((count, await producer.send_batch(batch, topic, partition=partition)))

        # Its builder itself: what the batch does around it takes a third of the time of a message.
        batch = producer.create_batch()
        append, count = batch._builder.append, 0
        now_ms = time.time_ns() // 1_000_000
        for number, (key, value, headers) in enumerate(messages, start=1):
            if number % STEP_MESSAGES == 0:
                await asyncio.sleep(0)
                now_ms = time.time_ns() // 1_000_000
            if type(headers) is not list:  # aiokafka takes nothing else
                headers = list(headers)
            while append(count, now_ms, key, value, headers) is None:
                await send()
                batch = producer.create_batch()
                append, count = batch._builder.append, 0
            count += 1
        if count:
            await send()
        appended: list[Appended] = []
        for count, future in sent:
            metadata = await future
            if metadata.offset < 0:
                # DuplicateSequenceNumber: aiokafka reports success without knowing where.
                raise KafkaError("the broker has the batch already but does not say where")
            offsets = range(metadata.offset, metadata.offset + count)
            appended += map(make_appended, zip(offsets, repeat(metadata.timestamp)))
        return appended

    async def _current(self) -> Any:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    **kafka_security.arguments(),
                    client_id=self._client_id,
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=BATCH_BYTES_MAX,
                    max_request_size=LINE_MESSAGE_BYTES_MAX + DLQ_ALLOWANCE_BYTES,
                    request_timeout_ms=REQUEST_TIMEOUT_MS,
                    linger_ms=0,
                )
                try:
                    await asyncio.wait_for(producer.start(), timeout=self._delivery_timeout_s)
                except (KafkaError, TimeoutError, OSError) as error:
                    metrics.DEPENDENCY_ERRORS.add(1, metrics.KAFKA)
                    await _stop_producer(producer)
                    raise KafkaAway(f"no producer: {type(error).__name__}: {error}") from error
                self._producer = producer
            return self._producer

    def _retire(self, producer: Any) -> None:
        if self._producer is not producer:
            return
        self._producer = None
        self.recycled_count += 1
        metrics.PRODUCER_RECYCLES.add(1)
        log.warning("producer_recycled", client_id=self._client_id, count=self.recycled_count)
        task = asyncio.create_task(_stop_producer(producer))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _stop_producer(producer: Any) -> None:
    try:
        await asyncio.wait_for(producer.stop(), timeout=STOP_TIMEOUT_S)
    except (KafkaError, TimeoutError, OSError):
        # stop() waits for batches that may never go out: end its sender, or it would retry them for ever.
        with contextlib.suppress(KafkaError, TimeoutError, OSError):
            await asyncio.wait_for(producer._sender.close(), timeout=STOP_TIMEOUT_S)
        with contextlib.suppress(KafkaError, TimeoutError, OSError):
            await asyncio.wait_for(producer.client.close(), timeout=STOP_TIMEOUT_S)


class PartitionReader:
    """Reads one partition from where it is told to, outside any consumer group, one answer of the broker ahead.

    One reader a partition: a partition that waits in place then holds up no other. Use it from one task.
    """

    def __init__(
        self, bootstrap: str, client_id: str, topic: str, partition: int, *, wait_ms: int = FETCH_WAIT_MS
    ) -> None:
        """`wait_ms`: for how long the broker may keep a request that it has no records for."""
        self._name = f"{topic}/{partition}"
        client = AIOKafkaClient(
            bootstrap_servers=bootstrap,
            **kafka_security.arguments(),
            client_id=client_id,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        self._log = PartitionLog(client, topic, partition)
        self._wait_ms = wait_ms
        self._started = False
        self._position = 0
        self._log_end = 0
        self._fetched: Fetched | None = None
        """What is being taken."""
        self._coming: asyncio.Task[Fetched] | None = None
        """The answer behind that."""

    async def bounds(self) -> tuple[int, int]:
        """First offset of the log and the one after its last. Raises KafkaAway."""
        return await self._offset_at(EARLIEST), await self._offset_at(LATEST)

    async def offset_at(self, timestamp_ms: int) -> int:
        """The offset of the first record at or after that time, or the one after the last. Raises KafkaAway."""
        found = await self._offset_at(max(timestamp_ms, 0))
        return found if found >= 0 else await self._offset_at(LATEST)

    async def seek(self, offset: int) -> None:
        """Read from `offset` on. Raises KafkaAway."""
        await self._start()
        self._forget()
        self._position = offset

    def known_end(self) -> int:
        """The offset behind the log's last record, as the broker told it with the last fetch; 0 before that."""
        return self._log_end

    def position(self) -> int:
        """The offset from which `poll` and `take` go on."""
        return self._position

    @property
    def answer(self) -> Fetched:
        """What the records came with that `take` has just given."""
        if self._fetched is None:
            raise RuntimeError(f"{self._name}: nothing has been taken")
        return self._fetched

    async def poll(self, *, max_records: int, timeout_ms: int) -> list[Record]:
        """The next records, or none within the time. Raises OutOfLog, KafkaAway."""
        return to_records(await self.take(max_records=max_records, timeout_ms=timeout_ms))

    async def take(
        self, *, max_records: int, timeout_ms: int, telling: Callable[[], bytes | None] = lambda: None
    ) -> list[LogRecord]:
        """The same, for whoever does not keep them.

        `telling` is asked when an answer is there. If it gives bytes, of an answer without them the last record is
        enough; None: all are taken.
        """
        deadline_s = time.monotonic() + timeout_ms / 1000
        with _away("poll"):
            await self._start()
            try:
                while not (records := self._take(max_records, telling)):
                    if not await self._fetch(deadline_s):
                        break
                return records
            except OffsetOutOfRangeError as error:
                self._forget()
                raise OutOfLog(str(error)) from error
            except Exception:
                self._forget()  # so that the next one begins behind what was taken
                raise

    async def read(self, start: int, end: int, *, max_records: int = 4_000) -> AsyncIterator[list[Record]]:
        """The records with start <= offset < end, in lists of at most `max_records`; ends when the log has no more.

        Raises OutOfLog, KafkaAway.
        """
        if start >= end:  # at rest, and a look at the log's end would wait behind the reader's own long poll
            return
        _, log_end = await self.bounds()
        end = min(end, log_end)
        if start >= end:
            return
        await self.seek(start)
        while start < end:
            records = await self.poll(max_records=max_records, timeout_ms=REQUEST_TIMEOUT_MS)
            if not records:
                if self._position >= end:
                    return  # what is left are offsets without records
                raise KafkaAway(f"{self._name}: nothing read at {start} though it ends at {end}")
            start = records[-1].offset + 1
            wanted = [record for record in records if record.offset < end]
            if wanted:
                yield wanted

    async def read_one(self, offset: int) -> Record | None:
        """The record at exactly that offset, if the log has it; `poll` goes on where it was. Raises KafkaAway."""
        with _away("read one"):
            await self._start()
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                    fetched = await self._log.fetch(offset, bytes_max=1, wait_ms=0)
            except OffsetOutOfRangeError:
                return None
            found = to_records(fetched.take(1))
        return found[0] if found and found[0].offset == offset else None

    async def stop(self) -> None:
        self._forget()
        with contextlib.suppress(KafkaError, TimeoutError, OSError):
            await asyncio.wait_for(self._log.close(), timeout=STOP_TIMEOUT_S)

    async def _start(self) -> None:
        if not self._started:
            with _away("start"):
                async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                    await self._log.start()
            self._started = True

    async def _offset_at(self, timestamp_ms: int) -> int:
        await self._start()
        with _away("offset"):
            async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                return await self._log.offset_at(timestamp_ms)

    def _take(self, max_records: int, telling: Callable[[], bytes | None]) -> list[LogRecord]:
        """The next records of what is here; asks for what is known to be behind it, so that it comes meanwhile."""
        fetched = self._fetched
        if fetched is None:
            return []
        if self._coming is None and fetched.next_offset < fetched.log_end:
            self._ask(fetched.next_offset)
        wanted = telling()
        records = (fetched.skim(wanted) if wanted is not None else []) or fetched.take(max_records)
        self._position = fetched.offset
        if not records:
            self._fetched = None
        return records

    async def _fetch(self, deadline_s: float) -> bool:
        """Whether an answer has come within the time."""
        left_s = max(0.0, deadline_s - time.monotonic())
        if self._coming is None and not left_s:
            return False
        coming = self._coming or self._ask(self._position)
        done, _ = await asyncio.wait([coming], timeout=left_s)
        if not done:
            return False
        self._coming = None
        self._fetched = coming.result()
        self._log_end = self._fetched.log_end
        return True

    def _ask(self, offset: int) -> asyncio.Task[Fetched]:
        self._coming = asyncio.create_task(self._log.fetch(offset, wait_ms=self._wait_ms))
        return self._coming

    def _forget(self) -> None:
        """Whatever was fetched and not taken."""
        coming, self._coming = self._coming, None
        self._fetched = None
        if coming is not None and not coming.cancel() and not coming.cancelled():
            coming.exception()  # nobody will ask for it


def to_records(found: Iterable[LogRecord]) -> list[Record]:
    """Records that may be kept."""
    return [make_record((r.offset, r.timestamp, r.key, r.value, tuple(r.headers))) for r in found]


def records_again(answers: Iterable[Fetched], offsets: Collection[int]) -> dict[int, Record]:
    """The records at these offsets by offset, parsed once more from what they came with. Raises KafkaAway."""
    with _away("parse again"):
        return {record.offset: record for answer in answers for record in to_records(answer.again(offsets))}


@contextlib.contextmanager
def _away(doing: str) -> Any:
    try:
        yield
    except (KafkaError, TimeoutError, OSError) as error:
        metrics.DEPENDENCY_ERRORS.add(1, metrics.KAFKA)
        raise KafkaAway(f"{doing}: {type(error).__name__}: {error}") from error


_LINE = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1", "cleanup.policy": "delete"}
_DLQ = {"retention.ms": "-1", "cleanup.policy": "delete"}


async def check_topics(bootstrap: str, topics: Topics) -> int:
    """The partition count of the three topics. Raises WrongTopics with a sentence a fault, KafkaAway."""
    with _away("check topics"):
        admin = AIOKafkaAdminClient(
            bootstrap_servers=bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS, **kafka_security.arguments()
        )
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                await admin.start()
                names = [topics.line, topics.dlq, topics.outcomes]
                present = set(await admin.list_topics())
                missing = [name for name in names if name not in present]
                if missing:
                    raise MissingTopics(f"missing topics {', '.join(missing)}: run the migration command")
                counts = {d["topic"]: len(d["partitions"]) for d in await admin.describe_topics(names)}
                configs = await _topic_configs(admin, names)
        finally:
            await admin.close()
    faults = [
        f"topic {name} has {key}={configs[name].get(key)}: set it to {value}"
        for name, wanted in ((topics.line, _LINE), (topics.dlq, _DLQ))
        for key, value in wanted.items()
        if configs[name].get(key) != value
    ]
    line_bytes = int(configs[topics.line]["max.message.bytes"])
    dlq_bytes = int(configs[topics.dlq]["max.message.bytes"])
    if dlq_bytes < line_bytes + DLQ_ALLOWANCE_BYTES:
        wanted_bytes = line_bytes + DLQ_ALLOWANCE_BYTES
        faults.append(f"topic {topics.dlq} has max.message.bytes={dlq_bytes}: set it to {wanted_bytes} or more")
    if line_bytes > LINE_MESSAGE_BYTES_MAX:
        faults.append(
            f"topic {topics.line} has max.message.bytes={line_bytes}: set it to {LINE_MESSAGE_BYTES_MAX} or less"
        )
    if len(set(counts.values())) != 1:
        faults.append(f"the topics' partition counts differ ({counts}): they must be the same")
    if faults:
        raise WrongTopics("; ".join(faults))
    return counts[topics.line]


async def target_faults(bootstrap: str, partition_count: int, topic: str) -> list[str]:
    """What is against publishing our outcomes to that topic, a coupon's in their order. Raises KafkaAway."""
    with _away("check the target topic"):
        admin = AIOKafkaAdminClient(
            bootstrap_servers=bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS, **kafka_security.arguments()
        )
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                await admin.start()
                if topic not in await admin.list_topics():
                    return ["must be a topic that there is"]
                count = len((await admin.describe_topics([topic]))[0]["partitions"])
                config = (await _topic_configs(admin, [topic]))[topic]
        finally:
            await admin.close()
    faults = []
    if count != partition_count:
        faults.append(f"must have {partition_count} partitions like the line, not {count}")
    if config["cleanup.policy"] != "delete":
        faults.append(f"must have cleanup.policy=delete, not {config['cleanup.policy']}: it would lose outcomes")
    if int(config["max.message.bytes"]) < BATCH_BYTES_MAX:
        faults.append(f"must have max.message.bytes of {BATCH_BYTES_MAX} or more, not {config['max.message.bytes']}")
    return faults


async def _topic_configs(admin: Any, names: Sequence[str]) -> dict[str, dict[str, str]]:
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for response in responses
        for resource in response.resources
    }
