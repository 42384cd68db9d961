"""What aiokafka's connections and clients do where its callers expect an error of Kafka's, and get none or another."""

from __future__ import annotations

from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError

_send = AIOKafkaConnection.send
_bootstrap = AIOKafkaClient.bootstrap


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


async def _bootstrap_with_brokers(self: Any) -> None:
    """As aiokafka's own, but a cluster that names no broker is one that is not there yet.

    A lone broker was seen to name none for a moment after a freeze. A client that begins with that fails an assertion
    in `coordinator_lookup`, of which a group's coordination dies for good; and if the connection it began with breaks,
    it knows nobody whom it could ask for others.
    """
    await _bootstrap(self)
    if not self.cluster.brokers():
        self._conns.pop(("bootstrap", ConnectionGroup.DEFAULT)).close()
        raise KafkaConnectionError(f"{self.hosts} name no broker of the cluster")


AIOKafkaConnection.send = _send_or_break
AIOKafkaClient.bootstrap = _bootstrap_with_brokers
