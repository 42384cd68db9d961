"""The client: IssuerService, with what waiting and many requests at once need; the other services beside it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from coupon.v1 import issuer_pb2, issuer_pb2_grpc

from firstcome.calls import PAGE_SIZE_DEFAULT, Calls, pages, pause_s
from firstcome.channel import Connection, open_channel
from firstcome.coupons import Coupons
from firstcome.dead_letters import DeadLetters
from firstcome.errors import (
    Answer,
    FirstcomeError,
    Reason,
    Unavailable,
    error_of,
    error_of_status,
)
from firstcome.replays import Replays
from firstcome.values import Issuance, IssuanceState, IssueRequest, IssueResult, issuance_from, new_request_id

BATCH_REQUESTS_MAX = 1_000
BATCHES_IN_FLIGHT = 4
BATCH_SENDS_MAX = 4
"""How often the requests of a batch that may still work are sent, the first time included."""
SETTLE_CALL_S_MAX = 30.0
_REJECTED_CODES: Mapping[str, grpc.StatusCode] = {
    Reason.ALREADY_ISSUED: grpc.StatusCode.ALREADY_EXISTS,
    Reason.COUPON_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
}


@asynccontextmanager
async def connect(connection: Connection | str) -> AsyncIterator[Client]:
    """A client for as long as the block lasts; a str is an address in plain text. Raises SettingsError.

    Nothing is sent before the first call. One client serves any number of concurrent calls.
    """
    chosen = Connection(connection) if isinstance(connection, str) else connection
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(chosen))
        dlq_channel = await stack.enter_async_context(open_channel(replace(chosen, address=chosen.dlq_address)))
        yield Client(channel, dlq_channel, Calls(chosen))


class Client:
    """Calls of one system. Every method raises FirstcomeError.

    gRPC itself repeats calls that fail with UNAVAILABLE, a few times within the deadline, with the same `request_id`.
    `timeout_s`: the deadline of the call, retries included; None: the connection's.
    """

    def __init__(self, channel: grpc.aio.Channel, dlq_channel: grpc.aio.Channel, calls: Calls) -> None:
        stub: Any = issuer_pb2_grpc.IssuerServiceStub
        self._stub: Any = stub(channel)
        self._calls = calls
        self.coupons = Coupons(channel, calls)
        self.dead_letters = DeadLetters(dlq_channel, calls)
        self.replays = Replays(dlq_channel, calls)

    async def issue(
        self,
        coupon_id: str,
        user_id: str,
        *,
        wait: bool = False,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Issuance:
        """Takes a place in the coupon's line: ACCEPTED, with the ticket. ISSUED if the user has it by this request.

        With `wait` the answer is the verdict if there is one before the deadline, and at most 30 s are waited; a no is
        Refused, or NotFound. After Unavailable, call again with the error's `request_id`: it is harmless.
        """
        request = issuer_pb2.IssueCouponRequest(
            coupon=f"coupons/{coupon_id}", user_id=user_id, request_id=request_id or new_request_id(), wait=wait
        )
        return issuance_from(await self._calls.unary(self._stub.IssueCoupon, request, timeout_s))

    async def issue_and_wait(
        self, coupon_id: str, user_id: str, *, patience_s: float, request_id: str | None = None
    ) -> Issuance:
        """Takes a place and waits for the verdict as long as `patience_s`, over any number of calls.

        While the service is away or overloaded it calls again, with the same `request_id` and no sooner than asked.
        Answers ISSUED or PARKED, or ACCEPTED if there is no verdict in time. Raises Refused or NotFound if the verdict
        is no; and Unavailable or Overloaded if the patience ends before a place in the line is certain.
        """
        request_id = request_id or new_request_id()
        deadline_s = time.monotonic() + patience_s
        for failures in itertools.count(1):
            try:
                issuance = await self.issue(
                    coupon_id,
                    user_id,
                    wait=True,
                    request_id=request_id,
                    timeout_s=min(SETTLE_CALL_S_MAX, max(deadline_s - time.monotonic(), 0.001)),
                )
                break
            except FirstcomeError as error:
                delay_s = pause_s(failures, error)
                if not error.retryable or time.monotonic() + delay_s >= deadline_s:
                    raise
                await asyncio.sleep(delay_s)
        if not issuance.settled:
            issuance = await self._follow(issuance, deadline_s)
        if issuance.state is IssuanceState.REJECTED:
            raise refusal(issuance)
        return issuance

    async def _follow(self, issuance: Issuance, deadline_s: float) -> Issuance:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return issuance
        try:
            async for latest in self.watch_issuance(
                issuance.coupon_id, issuance.user_id, ticket=issuance.ticket, timeout_s=left_s
            ):
                issuance = latest
        except Unavailable:
            # The place in the line is certain: what is known of it is worth more than why no more is.
            return issuance
        return issuance

    async def get_issuance(
        self, coupon_id: str, user_id: str, *, ticket: str = "", timeout_s: float | None = None
    ) -> Issuance:
        """What became of the request with that ticket; without one, the user's coupon (ISSUANCE_NOT_FOUND if none)."""
        request = issuer_pb2.GetIssuanceRequest(name=_name(coupon_id, user_id), ticket=ticket)
        return issuance_from(await self._calls.unary(self._stub.GetIssuance, request, timeout_s))

    def list_issuances(
        self,
        coupon_id: str | None = None,
        user_id: str | None = None,
        *,
        page_size: int = PAGE_SIZE_DEFAULT,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Issuance, None]:
        """The grants of a coupon by sequence, of a user by coupon, or the one of both; each page has the deadline.

        Raises ValueError without either.
        """
        if coupon_id is None and user_id is None:
            raise ValueError("issuances are listed by coupon, by user or by both")

        async def fetch(token: str) -> tuple[Sequence[Issuance], str]:
            request = issuer_pb2.ListIssuancesRequest(
                parent=f"coupons/{coupon_id if coupon_id is not None else '-'}",
                user_id=user_id or "",
                page_size=page_size,
                page_token=token,
            )
            answer = await self._calls.unary(self._stub.ListIssuances, request, timeout_s)
            return [issuance_from(one) for one in answer.issuances], answer.next_page_token

        return pages(fetch)

    def watch_issuance(
        self, coupon_id: str, user_id: str, *, ticket: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[Issuance, None]:
        """The issuance now and at each change, until it is settled; a broken connection is replaced on the way.

        `timeout_s` of None: as long as it takes. Raises DeadlineExceeded when it is over, Unavailable when the service
        stays away.
        """
        request = issuer_pb2.WatchIssuanceRequest(name=_name(coupon_id, user_id), ticket=ticket)
        return self._calls.watch(self._stub.WatchIssuance, request, issuance_from, timeout_s)

    async def issue_many(
        self,
        requests: Iterable[IssueRequest],
        *,
        batch_size: int = BATCH_REQUESTS_MAX,
        batches_in_flight: int = BATCHES_IN_FLIGHT,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[IssueResult, None]:
        """A result for each request, in the order of the requests; an error is a value, and none stops the others.

        Requests are drawn as they are sent, so they may be any number. Those that may work later are sent again, a few
        times within `timeout_s` of a batch. Several batches are under way at once, so that places in the line follow
        the order of requests only within a batch; with `batches_in_flight=1`, everywhere but for those sent again.
        Raises ValueError for a size out of range, and nothing else.
        """
        if not 1 <= batch_size <= BATCH_REQUESTS_MAX:
            raise ValueError(f"batch_size is {batch_size}: it must be from 1 to {BATCH_REQUESTS_MAX}")
        if batches_in_flight < 1:
            raise ValueError(f"batches_in_flight is {batches_in_flight}: it must be at least 1")
        chosen_s = self._calls.timeout_s if timeout_s is None else timeout_s
        under_way: deque[asyncio.Task[list[IssueResult]]] = deque()
        try:
            for batch in _batches(requests, batch_size):
                if len(under_way) == batches_in_flight:
                    for result in await under_way.popleft():
                        yield result
                under_way.append(asyncio.create_task(self._issue_batch(batch, chosen_s)))
            while under_way:
                for result in await under_way.popleft():
                    yield result
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _issue_batch(self, requests: Sequence[IssueRequest], timeout_s: float) -> list[IssueResult]:
        deadline_s = time.monotonic() + timeout_s
        results: list[IssueResult | None] = [None] * len(requests)
        places = list(range(len(requests)))
        for sends in range(1, BATCH_SENDS_MAX + 1):
            left_s = max(deadline_s - time.monotonic(), 0.001)
            sent = await self._send([requests[place] for place in places], left_s)
            failed = []
            for place, result in zip(places, sent, strict=True):
                results[place] = result
                if result.error is not None and result.error.retryable:
                    failed.append((place, result.error))
            if not failed or sends == BATCH_SENDS_MAX:
                break
            delay_s = max(pause_s(sends, error) for _, error in failed)
            if time.monotonic() + delay_s >= deadline_s:
                break
            await asyncio.sleep(delay_s)
            places = [place for place, _ in failed]
        return [result for result in results if result is not None]

    async def _send(self, requests: Sequence[IssueRequest], timeout_s: float) -> list[IssueResult]:
        message = issuer_pb2.BatchIssueCouponsRequest(requests=[_message(one) for one in requests])
        try:
            answer = await self._calls.unary(self._stub.BatchIssueCoupons, message, timeout_s)
        except FirstcomeError as error:
            return [IssueResult(one, None, _with_request_id(error, one.request_id)) for one in requests]
        if len(answer.results) != len(requests):
            said = f"{len(answer.results)} results for {len(requests)} requests"
            bad = Answer(grpc.StatusCode.INTERNAL, "INTERNAL", said, {})
            return [IssueResult(one, None, _with_request_id(error_of(bad), one.request_id)) for one in requests]
        return [_result(one, result) for one, result in zip(requests, answer.results, strict=True)]


def refusal(issuance: Issuance) -> FirstcomeError:
    """The error that a waiting call would have raised for a REJECTED issuance."""
    return error_of(
        Answer(
            code=_REJECTED_CODES.get(issuance.reject_reason, grpc.StatusCode.FAILED_PRECONDITION),
            reason=issuance.reject_reason,
            message=f"{issuance.user_id} does not get coupon {issuance.coupon_id}",
            metadata={"request_id": issuance.request_id, "ticket": issuance.ticket},
        )
    )


def _result(request: IssueRequest, result: issuer_pb2.IssueResult) -> IssueResult:
    if result.WhichOneof("result") == "issuance":
        return IssueResult(request, issuance_from(result.issuance), None)
    return IssueResult(request, None, error_of_status(result.error, request.request_id))


def _with_request_id(error: FirstcomeError, request_id: str) -> FirstcomeError:
    answer = error.answer
    return error_of(replace(answer, metadata={**answer.metadata, "request_id": request_id}))


def _message(request: IssueRequest) -> issuer_pb2.IssueCouponRequest:
    return issuer_pb2.IssueCouponRequest(
        coupon=f"coupons/{request.coupon_id}",
        user_id=request.user_id,
        request_id=request.request_id,
        wait=request.wait,
    )


def _batches(requests: Iterable[IssueRequest], size: int) -> Iterator[list[IssueRequest]]:
    source = iter(requests)
    while batch := list(itertools.islice(source, size)):
        yield batch


def _name(coupon_id: str, user_id: str) -> str:
    return f"coupons/{coupon_id}/issuances/{user_id}"
