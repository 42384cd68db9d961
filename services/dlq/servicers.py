"""The gRPC methods of operators: check the request, hand it on, nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coupon.v1 import dead_letter_pb2, dead_letter_pb2_grpc

from services.dlq import validation
from services.dlq.operator_store import (
    Change,
    Entry,
    Missing,
    OperatorStore,
    Outdated,
    RequestIdReused,
    Shown,
    TakenAction,
)
from services.dlq.rows import CORRECTED, Content
from services.dlq.validation import Operation, name_of
from services.domain.dead_letter import DeadLetter, DeadLetterState, WrongState, correct, discard, retry
from services.runtime.auth import caller_name
from services.runtime.paging import page_token
from services.runtime.rpc_errors import Refusal, Violation, invalid
from services.runtime.wire import to_timestamp

_Message = dead_letter_pb2.DeadLetter


class DeadLetterServicer(dead_letter_pb2_grpc.DeadLetterServiceServicer):
    def __init__(self, store: OperatorStore, clock_us: Callable[[], int]) -> None:
        self._store = store
        self._clock_us = clock_us

    async def GetDeadLetter(self, request: dead_letter_pb2.GetDeadLetterRequest, context: Any) -> _Message:  # noqa: N802
        ticket = validation.letter_name(request.name)
        try:
            return _whole(await self._store.get(ticket))
        except Missing as error:
            raise _not_found(name_of(ticket)) from error

    async def ListDeadLetters(  # noqa: N802
        self, request: dead_letter_pb2.ListDeadLettersRequest, context: Any
    ) -> dead_letter_pb2.ListDeadLettersResponse:
        asked = validation.letter_list(request)
        entries = await self._store.entries(asked.wanted, asked.after, asked.page_size + 1)
        # Of less than 1,600 bytes each: the most that a page may have stays below PAGE_BYTES_MAX.
        page = [_in_short(entry) for entry in entries[: asked.page_size]]
        token = page_token(asked.filter_key, page[-1].ticket) if len(entries) > len(page) else ""
        return dead_letter_pb2.ListDeadLettersResponse(dead_letters=page, next_page_token=token)

    async def RetryDeadLetter(self, request: dead_letter_pb2.RetryDeadLetterRequest, context: Any) -> _Message:  # noqa: N802
        now_us = self._clock_us()
        asked = validation.retry(request, caller_name(), now_us)
        correction = asked.correction

        def decide(letter: DeadLetter, original: Content) -> Change:
            if correction is None:
                return Change(retry(letter, now_us=now_us), DeadLetterState.RETRYING)
            return Change(correct(letter, now_us=now_us), CORRECTED, correction.of(original))

        return await self._operate(asked, decide)

    async def DiscardDeadLetter(self, request: dead_letter_pb2.DiscardDeadLetterRequest, context: Any) -> _Message:  # noqa: N802
        return await self._operate(
            validation.discard(request), lambda letter, _: Change(discard(letter), DeadLetterState.DISCARDED)
        )

    async def _operate(self, asked: Operation, decide: Callable[[DeadLetter, Content], Change]) -> _Message:
        """Do it once, however often the call is repeated; then the dead letter as it is now."""
        name, request_id = name_of(asked.ticket), asked.call.request_id
        try:
            shown = await self._store.operate(
                asked.ticket, asked.call, asked.version, decide, caller=caller_name(), comment=asked.comment
            )
        except Missing as error:
            raise _not_found(name, request_id) from error
        except RequestIdReused as error:
            description = "was used for another call about this dead letter; use a new one"
            raise invalid([Violation("request_id", description)], request_id) from error
        except Outdated as error:
            message = f"{name} has changed meanwhile; get it and try again with its etag"
            raise Refusal("ETAG_MISMATCH", message, metadata={"request_id": request_id}) from error
        except WrongState as error:
            raise Refusal("WRONG_STATE", str(error), resource=name, metadata={"request_id": request_id}) from error
        return _whole(shown)


def _in_short(entry: Entry) -> _Message:
    """As a list shows it: without key, value, headers and actions."""
    letter = entry.letter
    message = _Message(
        name=name_of(letter.original),
        state=letter.state.value,
        reason=letter.reason.value,
        error_message=letter.message,
        coupon_id=entry.coupon_id or "",
        user_id=entry.user_id or "",
        request_id=entry.request_id or "",
        ticket=str(letter.original),
        redrive_ticket="" if letter.redrive is None else str(letter.redrive),
        attempt_count=letter.attempt_count,
        trace_id=entry.trace_id or "",
        record_time=to_timestamp(entry.record_us),
        first_failed_time=to_timestamp(letter.first_failed_us),
        last_failed_time=to_timestamp(letter.last_failed_us),
        etag=str(entry.version),
    )
    if letter.next_attempt_us is not None:
        message.next_attempt_time.CopyFrom(to_timestamp(letter.next_attempt_us))
    return message


def _whole(shown: Shown) -> _Message:
    message = _in_short(shown.entry)
    message.key = shown.content.key or b""
    message.value = shown.content.value or b""
    for name, value in shown.content.headers:  # the last of a name stays
        message.headers[name] = value or b""
    message.actions.extend(_action(taken) for taken in shown.actions)
    return message


def _action(taken: TakenAction) -> _Message.Action:
    return _Message.Action(
        action=taken.action, caller=taken.caller, comment=taken.comment, time=to_timestamp(taken.time_us)
    )


def _not_found(name: str, request_id: str = "") -> Refusal:
    metadata = {"request_id": request_id} if request_id else {}
    return Refusal("DEAD_LETTER_NOT_FOUND", f"there is no {name}", resource=name, metadata=metadata)
