"""The catalogue of errors."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from services.domain.model import Reason
from services.runtime.rpc_errors import CATALOGUE, Detail, Refusal, Violation, catalogue_page, invalid, unavailable

_RETRIED = {
    "OVERLOADED",
    "RATE_LIMITED",
    "KAFKA_UNAVAILABLE",
    "DATABASE_UNAVAILABLE",
    "LEDGER_UNAVAILABLE",
}


@pytest.mark.parametrize("reason", CATALOGUE)
def test_every_error_has_its_info_first_and_then_its_detail(reason: str) -> None:
    refusal = Refusal(
        reason, "said", resource="coupons/x", violations=[Violation("f", "d")], metadata={"request_id": "r"}
    )
    status = refusal.status()
    code, detail, _, _ = CATALOGUE[reason]
    assert (status.code, status.message) == (code.value[0], "said")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, "firstcome", {"request_id": "r"})
    names = [packed.TypeName() for packed in status.details[1:]]
    assert names == ([] if detail is Detail.NONE else [f"google.rpc.{detail.value}"])


def test_what_many_are_told_is_of_their_own_request_and_nobody_can_change_it() -> None:
    for request_id in ("first", "second"):
        for reason in ("SOLD_OUT", "PAUSED"):
            for coupon in ("coupons/x", "coupons/y"):
                metadata = {"request_id": f"{request_id} {coupon}", "ticket": "0-1"}
                status = Refusal(reason, f"{coupon} {reason}", resource=coupon, metadata=metadata).status()
                assert (status.code, status.message) == (CATALOGUE[reason].code.value[0], f"{coupon} {reason}")
                info = error_details_pb2.ErrorInfo()
                assert status.details[0].Unpack(info)
                assert (info.reason, dict(info.metadata)) == (reason, metadata)
                told = error_details_pb2.PreconditionFailure()
                assert status.details[1].Unpack(told)
                (violation,) = told.violations
                assert (violation.type, violation.subject) == (reason, coupon)
                assert violation.description == f"{coupon} {reason}"
                for part in (*status.details, status):
                    part.Clear()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"request_id": "0af76519-16cd-43dd-8448-eb211c80319c"},
        {"request_id": "1bf76519-16cd-43dd-8448-eb211c80319d", "ticket": "0-1"},
        {"request_id": "?" * 36},
        {"request_id": "\u00e4" * 18},
        {"request_id": "\u00e4" * 36},
        {"role": "0af76519-16cd-43dd-8448-eb211c80319c"},
    ],
)
def test_the_metadata_is_the_refusals_own_whatever_it_is(metadata: dict[str, str]) -> None:
    for reason in ("SOLD_OUT", "OVERLOADED", "SOLD_OUT"):
        info = error_details_pb2.ErrorInfo()
        assert Refusal(reason, "said", metadata=metadata).status().details[0].Unpack(info)
        assert (info.reason, info.domain, dict(info.metadata)) == (reason, "firstcome", metadata)


def test_what_is_worth_trying_again_says_when() -> None:
    assert {reason for reason, row in CATALOGUE.items() if row.detail is Detail.RETRY} == _RETRIED
    unavailable_codes = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {reason for reason, row in CATALOGUE.items() if row.code in unavailable_codes} == _RETRIED
    retry = error_details_pb2.RetryInfo()
    assert unavailable("OVERLOADED", "full").status().details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 500


def test_every_refusal_of_the_ledger_has_its_row() -> None:
    assert {reason.value for reason in Reason} - {"REPEATED"} <= set(CATALOGUE)


def test_every_bad_field_is_in_the_details_and_in_the_message() -> None:
    refusal = invalid([Violation("a", "must be b"), Violation("c", "is required")], "r")
    bad = error_details_pb2.BadRequest()
    assert refusal.status().details[1].Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a", "must be b"), ("c", "is required")]
    assert refusal.message == "a: must be b; c: is required"
    assert refusal.metadata == {"request_id": "r"}


def test_the_page_of_errors_is_made_from_the_catalogue() -> None:
    page = Path(__file__).parents[2] / "docs" / "errors.md"
    assert page.read_text() == catalogue_page(), "stale: run make docs/errors.md"
