"""Requests to values."""

from __future__ import annotations

import uuid

import pytest
from coupon.v1 import coupon_pb2, events_pb2, issuer_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.domain.model import CouponState, Ticket, is_request_id
from services.issuer import validation
from services.runtime.paging import page_token
from services.runtime.rpc_errors import Refusal

UUID = "123e4567-e89b-12d3-a456-426614174000"
Change = events_pb2.CouponChangeRequestedEvent
Coupon = coupon_pb2.Coupon


def fields_of(raised: pytest.ExceptionInfo[Refusal]) -> set[str]:
    return {violation.field for violation in raised.value.violations}


@pytest.mark.parametrize("text", ["a", "A-Z.a_z~0@9:+-", "x" * 128])
def test_ids_that_may_be(text: str) -> None:
    request = issuer_pb2.IssueCouponRequest(coupon=f"coupons/{text}", user_id=text)
    call = validation.issue_call(request)
    assert (call.coupon_id, call.user_id, call.wait) == (text, text, False)
    assert is_request_id(call.request_id)
    made = uuid.UUID(call.request_id)
    assert (made.version, made.variant) == (4, uuid.RFC_4122)
    assert validation.issue_call(request).request_id != call.request_id


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a/b", "é", "a\0", "a\n", "\u0661", "a%2F", "*"])
def test_ids_that_may_not_be(text: str) -> None:
    with pytest.raises(Refusal) as raised:
        validation.issue_call(issuer_pb2.IssueCouponRequest(coupon=f"coupons/{text}", user_id=text, request_id="x"))
    assert fields_of(raised) == {"coupon", "user_id", "request_id"}


@pytest.mark.parametrize(
    "text", [UUID[:-1], UUID + "0", "{" + UUID + "}", UUID.replace("-", ""), " " + UUID, UUID + "\n"]
)
def test_a_request_id_is_a_uuid_in_its_usual_form(text: str) -> None:
    with pytest.raises(Refusal) as raised:
        validation.adjust_stock(coupon_pb2.AdjustStockRequest(name="coupons/x", delta=1, request_id=text))
    assert fields_of(raised) == {"request_id"}


def test_a_bad_request_id_is_told_in_a_form_fit_for_a_header() -> None:
    with pytest.raises(Refusal) as raised:
        validation.issue_call(issuer_pb2.IssueCouponRequest(request_id="\0é" * 10_000))
    told = raised.value.metadata["request_id"]
    assert len(told.encode()) <= 128
    assert told.isprintable() or "\ufffd" in told


@pytest.mark.parametrize(
    "name", ["coupons/x", "coupons/a b", "x", "/x", "coupons/", "coupons/x/y", "coupons/" + "x" * 129]
)
def test_a_coupons_name_is_judged_alike_in_requests_of_all_kinds(name: str) -> None:
    """That of an IssueCoupon is remembered."""

    def issue() -> str:
        return validation.issue_call(issuer_pb2.IssueCouponRequest(coupon=name, user_id="ann")).coupon_id

    def get() -> str:
        return validation.coupon_name(name)

    told: set[str] = set()
    for checked in (issue, get, issue):
        try:
            told.add(checked())
        except Refusal as refusal:
            told.add(refusal.violations[0].description)
    assert len(told) == 1


def test_an_odd_mask_makes_no_answer_that_is_too_large_for_headers() -> None:
    request = coupon_pb2.UpdateCouponRequest(coupon=Coupon(name="coupons/x"))
    request.update_mask.paths.extend(["\U0001f39f" * 1_000] * 100)
    with pytest.raises(Refusal) as raised:
        validation.update(request)
    assert fields_of(raised) == {"update_mask"}
    assert raised.value.status().ByteSize() < 2_000


@pytest.mark.parametrize(
    ("name", "ticket", "fields"),
    [
        ("coupons/x/issuances/ann", "", set()),
        ("coupons/x/issuances/ann", "3-17", set()),
        ("coupons/x/issuances/", "", {"name"}),
        ("coupons//issuances/ann", "", {"name"}),
        ("coupons/x/issuances/ann/y", "3", {"name", "ticket"}),
        ("coupons/x/issuances/ann", "03-1", {"ticket"}),
        ("coupons/x/issuances/ann", f"0-{2**63}", {"ticket"}),
    ],
)
def test_names_and_tickets_of_issuances(name: str, ticket: str, fields: set[str]) -> None:
    if fields:
        with pytest.raises(Refusal) as raised:
            validation.issuance(name, ticket)
        assert fields_of(raised) == fields
    else:
        assert validation.issuance(name, ticket) == ("x", "ann", Ticket.parse(ticket))


@pytest.mark.parametrize(("asked", "size"), [(0, 50), (1, 1), (1_000, 1_000), (1_001, 1_000), (2**31 - 1, 1_000)])
def test_sizes_of_pages(asked: int, size: int) -> None:
    assert validation.coupon_list(coupon_pb2.ListCouponsRequest(page_size=asked)).page_size == size


def test_a_list_names_all_that_is_bad() -> None:
    with pytest.raises(Refusal) as raised:
        validation.coupon_list(coupon_pb2.ListCouponsRequest(page_size=-1, page_token="?"))
    assert fields_of(raised) == {"page_size", "page_token"}
    with pytest.raises(Refusal) as raised:
        validation.issuance_list(issuer_pb2.ListIssuancesRequest(parent="x", user_id=" ", page_size=-1, page_token="?"))
    assert fields_of(raised) == {"parent", "user_id", "page_size", "page_token"}


def test_a_token_that_someone_made_up_says_no_more_than_a_key() -> None:
    for after in ("a\0b", "a b", "x" * 129):
        with pytest.raises(Refusal) as raised:
            validation.coupon_list(coupon_pb2.ListCouponsRequest(page_token=page_token("coupons 0", after)))
        assert fields_of(raised) == {"page_token"}
    for after in ("x", "-1", "9" * 19, "\u0661"):
        token = page_token("issuances x -", after)
        with pytest.raises(Refusal) as raised:
            validation.issuance_list(issuer_pb2.ListIssuancesRequest(parent="coupons/x", page_token=token))
        assert fields_of(raised) == {"page_token"}
    token = page_token("issuances x -", "17")
    assert validation.issuance_list(issuer_pb2.ListIssuancesRequest(parent="coupons/x", page_token=token)).after == "17"


def test_a_list_of_a_state() -> None:
    asked = validation.coupon_list(coupon_pb2.ListCouponsRequest(state=Coupon.SOLD_OUT))
    assert asked.state is CouponState.SOLD_OUT


def test_a_created_coupon_carries_only_what_a_caller_may_set() -> None:
    coupon = Coupon(
        name="coupons/y",
        display_name="d",
        total_quantity=5,
        issued_count=3,
        remaining_count=9,
        etag="1-1",
        state=Coupon.CLOSED,
    )
    coupon.start_time.FromSeconds(1)
    event = validation.create(coupon_pb2.CreateCouponRequest(coupon_id="x", coupon=coupon, request_id=UUID))
    kept = Coupon(display_name="d", total_quantity=5, start_time=Timestamp(seconds=1))
    assert event == Change(coupon_id="x", request_id=UUID, action=Change.CREATE, coupon=kept)


@pytest.mark.parametrize("total", [0, -1, 1_000_000_001, 2**63 - 1, -(2**63)])
def test_a_stock_that_may_not_be(total: int) -> None:
    with pytest.raises(Refusal) as raised:
        validation.create(coupon_pb2.CreateCouponRequest(coupon_id="x", coupon=Coupon(total_quantity=total)))
    assert fields_of(raised) == {"coupon.total_quantity"}


@pytest.mark.parametrize("delta", [0, 1_000_000_001, -1_000_000_001, 2**63 - 1, -(2**63)])
def test_a_stock_delta_that_may_not_be(delta: int) -> None:
    with pytest.raises(Refusal) as raised:
        validation.adjust_stock(coupon_pb2.AdjustStockRequest(name="coupons/x", delta=delta))
    assert fields_of(raised) == {"delta"}


@pytest.mark.parametrize(
    ("start", "end", "fields"),
    [
        (Timestamp(seconds=5), Timestamp(seconds=5), {"coupon.end_time"}),
        (Timestamp(seconds=5), Timestamp(seconds=5, nanos=999), {"coupon.end_time"}),  # the same microsecond
        (
            Timestamp(seconds=-62_135_596_801),
            Timestamp(seconds=253_402_300_800),
            {"coupon.start_time", "coupon.end_time"},
        ),
        (Timestamp(nanos=1_000_000_000), Timestamp(seconds=1, nanos=-1), {"coupon.start_time", "coupon.end_time"}),
        (Timestamp(seconds=-62_135_596_800), Timestamp(seconds=253_402_300_799, nanos=999_999_999), set()),
    ],
)
def test_windows(start: Timestamp, end: Timestamp, fields: set[str]) -> None:
    coupon = Coupon(total_quantity=1, start_time=start, end_time=end)
    request = coupon_pb2.CreateCouponRequest(coupon_id="x", coupon=coupon)
    if not fields:
        validation.create(request)
        return
    with pytest.raises(Refusal) as raised:
        validation.create(request)
    assert fields_of(raised) >= fields


@pytest.mark.parametrize(
    ("text", "good"),
    [("", True), ("春 🎟", True), ("x" * 256, True), ("x" * 257, False), ("a\0", False), ("\x7f", False)],
)
def test_display_names(text: str, good: bool) -> None:
    request = coupon_pb2.CreateCouponRequest(coupon_id="x", coupon=Coupon(total_quantity=1, display_name=text))
    if good:
        assert validation.create(request).coupon.display_name == text
    else:
        with pytest.raises(Refusal) as raised:
            validation.create(request)
        assert fields_of(raised) == {"coupon.display_name"}


def test_an_update_carries_only_what_its_mask_names() -> None:
    coupon = Coupon(name="coupons/x", display_name="d", total_quantity=5, etag="1-1")
    coupon.end_time.FromSeconds(9)
    request = coupon_pb2.UpdateCouponRequest(coupon=coupon, request_id=UUID)
    request.update_mask.paths.extend(["display_name", "display_name"])
    event = validation.update(request)
    assert event.coupon == Coupon(display_name="d")
    assert (list(event.update_paths), event.etag) == (["display_name"], "1-1")
    request.ClearField("update_mask")
    assert list(validation.update(request).update_paths) == ["display_name", "end_time"]


def test_the_requests_of_a_batch_are_checked_as_each_alone() -> None:
    good = issuer_pb2.IssueCouponRequest(coupon="coupons/x", user_id="ann", request_id=UUID, wait=True)
    without_id = issuer_pb2.IssueCouponRequest(coupon="coupons/y", user_id="bob")
    bad = [
        issuer_pb2.IssueCouponRequest(coupon="coupons/x", user_id="a b", request_id=UUID),
        issuer_pb2.IssueCouponRequest(coupon="coupons/" + "x" * 129, user_id="ann", request_id=UUID),
        issuer_pb2.IssueCouponRequest(coupon="coupons/x", user_id="ann", request_id=UUID[1:]),
    ]
    for others in ([], *([one] for one in bad), bad):
        first, *refused, last = validation.batch(
            issuer_pb2.BatchIssueCouponsRequest(requests=[good, *others, without_id])
        )
        assert first == validation.issue_call(good)
        assert isinstance(last, validation.IssueCall)
        assert (last.coupon_id, last.user_id, last.wait) == ("y", "bob", False)
        assert is_request_id(last.request_id)
        for request, refusal in zip(others, refused, strict=True):
            with pytest.raises(Refusal) as alone:
                validation.issue_call(request)
            assert isinstance(refusal, Refusal)
            assert refusal.violations
            assert refusal.violations == alone.value.violations


@pytest.mark.parametrize("count", [1, 1_000])
def test_batches_that_may_be(count: int) -> None:
    batch = issuer_pb2.BatchIssueCouponsRequest(requests=[issuer_pb2.IssueCouponRequest()] * count)
    assert len(validation.batch(batch)) == count
