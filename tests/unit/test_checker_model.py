"""The checker's model against the services' own decoding and decision, on lines that nobody wrote by hand."""

from __future__ import annotations

from aiokafka.partitioner import murmur2 as kafkas_murmur2
from coupon.v1 import coupon_pb2, events_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checker.classify import ISSUE_TYPE, classify, home_partition, murmur2
from checker.model import ExpectIssued, ExpectRejected, SequentialModel
from checker.records import Headers, Record
from tests.unit.checker_world import START_MS, World, coupon_at, request_id

COUPONS = [coupon_at(0), coupon_at(0, 1), coupon_at(1)]
USERS = ["ann", "bob", "cyd"]
MINUTE_S = 60

coupon_ids = st.sampled_from(COUPONS)
user_ids = st.sampled_from(USERS)
request_ids = st.integers(0, 5).map(request_id)
odd_ids = st.sampled_from(["", " ", "a b", "x" * 129, "ü", "é", "ok", "tab\t", "a/b", "line\n", COUPONS[0]])
odd_request_ids = st.sampled_from(["", "1", request_id(1).replace("-", ""), request_id(1) + "\n", request_id(10**6)])
times_s = st.sampled_from(
    [None, 0, START_MS // 1000, START_MS // 1000 + MINUTE_S, START_MS // 1000 - MINUTE_S, -62135596800, 2**62]
)
tickets = st.sampled_from([b"0-0", b"0-1", b"1-0", b"7-7", b"", b"00-1", b"0-", b"1-9999999999999999999", b"\xff"])
milliseconds = st.sampled_from([b"0", str(START_MS).encode(), b"", b"-1", b"x", b"1" * 16, b"007", None])


def timestamp(seconds: int | None) -> Timestamp | None:
    return None if seconds is None else Timestamp(seconds=seconds, nanos=1_500)


@st.composite
def redrives(draw: st.DrawFn) -> Headers:
    """Mostly none, sometimes the headers of a redrive, some of them nonsense."""
    if draw(st.integers(0, 4)):
        return ()
    headers: Headers = (("redrive-of", draw(tickets)), ("redrive-original-timestamp", draw(milliseconds)))
    return headers[: draw(st.integers(1, 2))]


@st.composite
def issues(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    event = events_pb2.CouponIssueRequestedEvent(
        coupon_id=draw(coupon_ids), user_id=draw(user_ids), request_id=draw(request_ids)
    )
    return ISSUE_TYPE, event.coupon_id.encode(), event.SerializeToString()


@st.composite
def changes(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    event = events_pb2.CouponChangeRequestedEvent(
        coupon_id=draw(coupon_ids),
        request_id=draw(request_ids),
        action=draw(st.integers(0, 7)),  # type: ignore[arg-type]
        coupon=draw(
            st.builds(
                lambda name, total, start, end: coupon_pb2.Coupon(
                    display_name=name, total_quantity=total, start_time=timestamp(start), end_time=timestamp(end)
                ),
                st.sampled_from(["", "one", "two"]),
                st.sampled_from([-1, 0, 1, 2, 3, 10**9, 10**9 + 1]),
                times_s,
                times_s,
            )
            | st.none()
        ),
        update_paths=draw(
            st.lists(st.sampled_from(["display_name", "start_time", "end_time", "total_quantity"]), max_size=3)
        ),
        stock_delta=draw(st.sampled_from([-3, -1, 0, 1, 2, 10**9, -(2**63)])),
        etag=draw(st.sampled_from(["", "", "0-0", "0-1", "1-0", "nonsense"])),
        caller=draw(st.sampled_from(["", "ops"])),
    )
    return b"coupon.v1.CouponChangeRequestedEvent", event.coupon_id.encode(), event.SerializeToString()


@st.composite
def creates(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    event = events_pb2.CouponChangeRequestedEvent(
        coupon_id=draw(coupon_ids),
        request_id=draw(request_ids),
        action="CREATE",
        coupon=coupon_pb2.Coupon(display_name="new", total_quantity=draw(st.integers(1, 3))),
    )
    return b"coupon.v1.CouponChangeRequestedEvent", event.coupon_id.encode(), event.SerializeToString()


@st.composite
def garbage(draw: st.DrawFn) -> tuple[bytes | None, bytes | None, bytes | None]:
    event = events_pb2.CouponIssueRequestedEvent(
        coupon_id=draw(coupon_ids | odd_ids),
        user_id=draw(user_ids | odd_ids),
        request_id=draw(request_ids | odd_request_ids),
    )
    kind = draw(st.sampled_from([ISSUE_TYPE, b"coupon.v1.CouponChangeRequestedEvent", b"coupon.v1.Coupon", b"", None]))
    key = draw(st.sampled_from([event.coupon_id.encode(), None, b"", b"other", COUPONS[0].encode()]))
    value = draw(
        st.sampled_from([event.SerializeToString(), b"", None, b"\xff\xff", b"\x0a\x02\xff\xfe", b"x" * 65_536])
        | st.binary(max_size=40)
    )
    return kind, key, value


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World()
    kinds = st.one_of(issues(), issues(), issues(), creates(), changes(), garbage())
    for kind, key, value in draw(st.lists(kinds, max_size=30)):
        home = home_partition((key or b"").decode(errors="replace"), world.partition_count)
        partition = home if draw(st.integers(0, 9)) else 1 - home
        headers: Headers = () if kind is None else (("ce_type", kind),)
        world.put(partition, key, value, (*headers, *draw(redrives())), time_ms=START_MS + draw(st.integers(0, 90_000)))
    return world.settle()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
async def test_model_agrees_with_the_services_on_any_line(world: World) -> None:
    report = await world.report()
    assert report.held, [str(finding) for result in report.results for finding in result.examples]
    assert report.counts.records == len(world.rows)


@given(st.binary(max_size=50))
@example(b"")
@example(b"coupon-1")
def test_murmur2_is_that_of_kafka(data: bytes) -> None:
    assert murmur2(data) == kafkas_murmur2(data) & 0xFFFFFFFF


def test_murmur2_has_the_values_of_kafkas_own_tests() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    assert {data: murmur2(data) for data in known} == {data: value & 0xFFFFFFFF for data, value in known.items()}


def test_a_record_of_64_kib_is_not_too_large_and_one_byte_more_is() -> None:
    def sized(size: int) -> Record:
        event = events_pb2.CouponIssueRequestedEvent(coupon_id="c", user_id="u", request_id=request_id(1))
        headers: Headers = (("ce_type", ISSUE_TYPE),)
        used = 1 + len(event.SerializeToString()) + len("ce_type") + len(ISSUE_TYPE) + len("pad")
        return Record(0, 0, 0, b"c", event.SerializeToString(), (*headers, ("pad", b"." * (size - used))))

    assert "TOO_LARGE" not in str(classify(sized(65_536)))
    assert "TOO_LARGE" in str(classify(sized(65_537)))


def test_redrive_is_judged_by_the_time_of_its_original_and_by_the_stock_of_its_own_place() -> None:
    coupon_id, world = coupon_at(0), World()
    world.change(
        events_pb2.CouponChangeRequestedEvent(
            coupon_id=coupon_id,
            request_id=request_id(1),
            action="CREATE",
            coupon=coupon_pb2.Coupon(total_quantity=1, end_time=Timestamp(seconds=START_MS // 1000 + 10)),
        )
    )
    late_ms = START_MS + 60_000
    redrive: Headers = (("redrive-of", b"1-5"), ("redrive-original-timestamp", str(START_MS + 1).encode()))
    world.issue(coupon_id, "late", 2, time_ms=late_ms)
    world.issue(coupon_id, "redriven", 3, time_ms=late_ms, headers=redrive)
    world.issue(coupon_id, "other", 4, time_ms=late_ms, headers=redrive)
    model = SequentialModel(0, world.partition_count)
    _, late, redriven, again = (model.settle(record) for record in world.lines[0])
    assert isinstance(late, ExpectRejected)
    assert late.reason == "ENDED"
    assert isinstance(redriven, ExpectIssued)
    assert isinstance(again, ExpectRejected)
    assert again.reason == "REPEATED"
    assert again.grant is not None
    assert str(again.grant.ticket) == "0-2"
