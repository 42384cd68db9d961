"""Who starts in a killed member's place tells the consumer group that it is gone: else the partitions stand still until
the dead one's session is over."""

from __future__ import annotations

import asyncio
import socket

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from services.runtime import kafka_security
from services.runtime.log import get_logger
from services.runtime.pace import Pace

log = get_logger(__name__)

TIMEOUT_S = 5.0


def place(service: str, metrics_listen: str | None) -> str | None:
    """A client id that no two living processes have: the host, and the port whose listener each has for itself.

    None without such a port. Where two machines have one name, or two processes one port on addresses of their own, a
    start costs the other a rebalance, and no more.
    """
    port = metrics_listen.rpartition(":")[2] if metrics_listen is not None else "0"
    return f"{service}-{socket.gethostname()}-{port}" if int(port) else None


async def dismiss(bootstrap: str, group: str, client_id: str, stopping: asyncio.Event) -> None:
    """Let members of that client id leave the group. Of who starts now none is one yet.

    Raises nothing: where it can't be done within TIMEOUT_S, or before `stopping`, their sessions end by themselves.
    """
    pace = Pace(stopping, cap_s=1.0)
    client = AIOKafkaClient(bootstrap_servers=bootstrap, client_id=client_id, **kafka_security.arguments())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await client.bootstrap()
            while not stopping.is_set() and not await _dismissed(client, group, client_id):
                await pace.failed()
    except (KafkaError, TimeoutError, OSError) as error:
        log.warning("predecessor_not_dismissed", group=group, error=f"{type(error).__name__}: {error}")
    finally:
        await client.close()


async def _dismissed(client: AIOKafkaClient, group: str, client_id: str) -> bool:
    """Whether none is left; False: ask again, as of a coordinator that comes back itself. Raises KafkaError."""
    try:
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        (found,) = (await client.send(coordinator, DescribeGroupsRequest([group]))).groups
        error_code, _, _, _, _, members, *_ = found
        _check(error_code)
        for member_id, its_client_id, *_ in members:
            if its_client_id == client_id:
                _check((await client.send(coordinator, LeaveGroupRequest(group, member_id))).error_code)
                log.info("predecessor_dismissed", group=group, member=member_id)
    except KafkaError as error:
        if not error.retriable and not isinstance(error, UnknownMemberIdError):  # which is gone by itself
            raise
        return False
    return True


def _check(error_code: int) -> None:
    if error_code:
        raise for_code(error_code)
