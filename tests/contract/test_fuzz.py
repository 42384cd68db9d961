"""Whatever a request holds, the answer is proper, and nothing of a refused one is in the line."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from coupon.v1 import coupon_pb2, issuer_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.domain.model import Unprocessable
from services.runtime import wire
from tests.conftest import TEST_PARTITIONS
from tests.contract.issuing import Issuer, System, home, new_id, refused

EXAMPLES = 60
COUPON = new_id("fuzz")
METHODS = [
    method
    for file, service in ((issuer_pb2, "IssuerService"), (coupon_pb2, "CouponService"))
    for method in file.DESCRIPTOR.services_by_name[service].methods
]
PROPER = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
}

_odd = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="\0\n\u202e\ufeff\U0001f39f/%;", max_size=200),
    st.sampled_from(["x" * 129, "é" * 70_000, "\U0001f39f" * 5_000, "\0", "coupons/", "coupons/a/b", "coupons/-", "*"]),
)
_known = st.sampled_from(
    [
        COUPON,
        f"coupons/{COUPON}",
        f"coupons/{COUPON}/issuances/ann",
        "ann",
        f"{home(COUPON)}-0",
        "123e4567-e89b-12d3-a456-426614174000",
        "display_name",
        "end_time",
        "",
    ]
)
_integers = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def values_of(field: Any, depth: int) -> st.SearchStrategy[Any]:
    if field.cpp_type in _integers:
        low, high = _integers[field.cpp_type]
        return st.one_of(st.sampled_from([0, 1, -1, 5, low, high]), st.integers(low, high))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.one_of(_known, _odd)
    assert field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    return messages_of(field.message_type, depth + 1)


def messages_of(descriptor: Any, depth: int = 0) -> st.SearchStrategy[ProtoMessage]:
    """Any message of that type: fields left out or filled with what is known, odd or extreme."""
    kind: Any = GetMessageClass(descriptor)
    fields = {}
    for field in descriptor.fields:
        one = values_of(field, depth)
        fields[field.name] = st.lists(one, max_size=4) if field.is_repeated else one
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: kind(**chosen))


async def answer_to(client: Issuer, method: Any, raw: bytes) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse: Any = GetMessageClass(method.output_type).FromString
    if method.server_streaming:
        watch: Any = client.channel.unary_stream(path, response_deserializer=parse)
        stream = watch(raw, timeout=10)
        try:
            return await stream.read()
        finally:
            stream.cancel()
    call: Any = client.channel.unary_unary(path, response_deserializer=parse)
    return await call(raw, timeout=10)


async def check_answer(client: Issuer, method: Any, raw: bytes) -> bool:
    """Whether the request may be in the line."""
    try:
        answer = await answer_to(client, method, raw)
    except grpc.aio.AioRpcError as error:
        failure = await refused(_raising(error))
        assert failure.code in PROPER
        if failure.code == grpc.StatusCode.INVALID_ARGUMENT:
            assert failure.fields or failure.message == "the request's bytes are not a message of this method"
        return "ticket" in failure.metadata
    return answer is not None


async def _raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_any_message_gets_a_proper_answer(client: Issuer, system: System, method: Any) -> None:
    await asyncio.gather(client.create(COUPON, 1_000), return_exceptions=True)
    await system.settled()
    before = await system.ends()

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    @given(messages_of(method.input_type))
    def collect(message: ProtoMessage) -> None:
        asked.append(message.SerializeToString())

    # Drawn first and sent together: Hypothesis draws in a plain function, the calls need this loop.
    asked: list[bytes] = []
    collect()
    gate = asyncio.Semaphore(16)

    async def send(raw: bytes) -> bool:
        async with gate:
            try:
                return await check_answer(client, method, raw)
            except AssertionError as error:
                message = GetMessageClass(method.input_type).FromString(raw)
                raise AssertionError(f"{str(message)[:2000]}\n{error}") from error

    entered = sum(await asyncio.gather(*(send(raw) for raw in asked)))
    after = await system.ends()
    changing = not method.name.startswith(("Get", "List", "Watch"))
    most = entered * (4 if method.name.startswith("Batch") else 1) if changing else 0
    assert sum(after) - sum(before) <= most
    for partition in range(TEST_PARTITIONS):
        for offset, record in (await system.records(system.topics.line, partition)).items():
            if offset >= before[partition]:
                assert not isinstance(wire.decode(record), Unprocessable)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_any_bytes_get_a_proper_answer(client: Issuer, system: System, method: Any) -> None:
    asked: list[bytes] = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=300))
    def collect(raw: bytes) -> None:
        asked.append(raw)

    collect()
    before = await system.ends()
    entered = await asyncio.gather(*(check_answer(client, method, raw) for raw in asked))
    if not any(entered):
        assert await system.ends() == before
