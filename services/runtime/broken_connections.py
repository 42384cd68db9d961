"""A connection to a broker that has just broken says so by the error that aiokafka's callers expect."""

from __future__ import annotations

from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError

_send = AIOKafkaConnection.send


def _send_or_break(self: Any, request: Any, expect_response: bool = True) -> Any:
    """As aiokafka's own, for uvloop's transports: where the socket has failed before the reader has seen it, they raise
    RuntimeError, asyncio's take the bytes and lose them. A partition would halt on an error that nobody foresaw."""
    try:
        return _send(self, request, expect_response)
    except RuntimeError as error:
        # aiokafka's own errors are RuntimeErrors, too.
        if isinstance(error, KafkaError) or not self._writer.transport.is_closing():
            raise
        self.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
        raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error


AIOKafkaConnection.send = _send_or_break
