"""A way to a server over which bad things happen: it gets slow, sliced, silent or cut."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

from stack import ports

_CHUNK_BYTES: Final = 65_536


class Link:
    """Forwards TCP connections from `port` on 127.0.0.1 to a server; an async context manager.

    What is set here takes effect at once, for open connections too.
    """

    def __init__(self, target_port: int, port: int | None = None, *, target_host: str = ports.HOST) -> None:
        """`port` of None: a free one."""
        self.port = port or ports.free_port()
        self.delay_s = 0.0
        """How long each piece of data is held up, in each direction."""
        self.slice_bytes = 0
        """Data go on in pieces of at most so many bytes; 0: as they come."""
        self.silent = False
        """Connections stay open and new ones are taken, but nothing gets through."""
        self.down = False
        """New connections are ended at once."""
        self.cuts_before_commit = 0
        """So many connections are cut when a COMMIT to PostgreSQL comes by, before it gets through."""
        self.cuts_after_commit = 0
        """So many connections are cut when a COMMIT has gone through, before its answer comes back."""
        self.cut_count = 0
        """How many connections were cut for a COMMIT."""
        self.refused_count = 0
        """How many connections were ended at once while it was down."""
        self._target = target_host, target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """host:port."""
        return f"{ports.HOST}:{self.port}"

    @classmethod
    def to_postgres(cls, dsn: str) -> Link:
        """A way to the server of a DSN."""
        parts = urlsplit(dsn)
        return cls(parts.port or 5432, target_host=parts.hostname or ports.HOST)

    def dsn(self, dsn: str) -> str:
        """The DSN of a PostgreSQL server by this way."""
        parts = urlsplit(dsn)
        account = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{account}@{self.address}" if account else self.address).geturl()

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._take, ports.HOST, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End all open connections by a reset."""
        for writer in list(self._writers):
            writer.transport.abort()

    def go_down(self) -> None:
        """End all connections, and take none until it is healed."""
        self.down = True
        self.cut()

    def heal(self) -> None:
        """Be an ordinary way again. What a silent link swallowed is lost, so its connections are cut."""
        if self.silent:
            self.cut()
        self.delay_s, self.slice_bytes, self.silent, self.down = 0.0, 0, False, False
        self.cuts_before_commit = self.cuts_after_commit = 0

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            self.refused_count += 1
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            self._writers |= set(writers)
            await asyncio.gather(self._up(reader, far_writer, writer), self._down(far_reader, writer))
        except OSError:
            pass  # the server is away: its client is cut off, too
        finally:
            for one in writers:
                one.transport.abort()
                self._writers.discard(one)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, near: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if b"COMMIT;" in data and self.cuts_before_commit > 0:
                self.cuts_before_commit -= 1
                self.cut_count += 1
                break
            if b"COMMIT;" in data and self.cuts_after_commit > 0:
                self.cuts_after_commit -= 1
                self.cut_count += 1
                near.transport.abort()  # the answer never arrives
                writer.write(data)
                writer.write_eof()
                return
            await self._forward(data, writer)
        near.transport.abort()
        writer.transport.abort()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._forward(data, writer)
        writer.transport.abort()

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.silent:
            return
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        step = self.slice_bytes or len(data)
        with contextlib.suppress(OSError):
            for start in range(0, len(data), step):
                if writer.transport.is_closing():  # cut meanwhile: what is still read goes nowhere
                    return
                writer.write(data[start : start + step])
                await writer.drain()
                if self.slice_bytes:
                    await asyncio.sleep(0)
