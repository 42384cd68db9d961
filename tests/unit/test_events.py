"""docs/asyncapi.yaml and docs/events.md say of the topics what the code does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from coupon.v1 import events_pb2

from services.domain.model import ParkReason, Reason, Ticket
from services.runtime import wire
from services.runtime.kafka import Message, Record, Topics

DOCS = Path(__file__).parents[2] / "docs"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
OUTCOMES, LINE = (wire.ISSUED, wire.REJECTED, wire.CHANGED), (wire.ISSUE_REQUESTED, wire.CHANGE_REQUESTED)


@pytest.fixture(scope="module")
def document() -> Mapping[str, Any]:
    loaded = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolved(document: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    if "$ref" not in node:
        return node
    found: Any = document
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def messages(document: Mapping[str, Any], channel: str) -> list[Mapping[str, Any]]:
    return [resolved(document, one) for one in document["channels"][channel]["messages"].values()]


def sent(ce_type: str) -> Message:
    """A record as the services write it, with all headers that it may have."""
    if ce_type in OUTCOMES:
        return wire.outcome_message("line", 0, wire.Outcome(7, 0, b"spring", ce_type, b""), TRACE)
    message = Message(b"spring", b"", wire.request_headers(ce_type, "id", b"time", TRACE, awaited=True))
    return wire.redrive_message(Ticket(0, 7), 0, 1, message.key, message.value, message.headers)


def headers_of(document: Mapping[str, Any], message: Mapping[str, Any]) -> Mapping[str, Any]:
    found = resolved(document, message["headers"])
    assert isinstance(found, dict)
    return found


def test_every_reference_leads_somewhere(document: Mapping[str, Any]) -> None:
    assert document["asyncapi"] == "3.0.0"
    for reference in references(document):
        if reference.startswith("#/"):
            assert resolved(document, {"$ref": reference})
        else:
            path, _, message = reference.partition("#/")
            assert f"\nmessage {message} {{" in (DOCS / path).read_text(encoding="utf-8")


def test_the_channels_are_the_topics_and_each_is_sent_and_received(document: Mapping[str, Any]) -> None:
    topics = Topics()
    addresses = {name: channel["address"] for name, channel in document["channels"].items()}
    assert addresses == {"outcomes": topics.outcomes, "line": topics.line, "deadLetters": topics.dlq}
    done = {(one["channel"]["$ref"].rpartition("/")[2], one["action"]) for one in document["operations"].values()}
    assert done == {(name, action) for name in addresses for action in ("send", "receive")}
    assert all(document["channels"][name]["description"].startswith("Internal.") for name in ("line", "deadLetters"))


@pytest.mark.parametrize(("channel", "ce_types"), [("outcomes", OUTCOMES), ("line", LINE)])
def test_the_messages_are_those_of_the_contract_with_the_headers_of_the_code(
    document: Mapping[str, Any], channel: str, ce_types: tuple[str, ...]
) -> None:
    described = messages(document, channel)
    assert sorted(one["name"] for one in described) == sorted(ce_types)
    for message in described:
        package, _, name = message["name"].rpartition(".")
        assert package == events_pb2.DESCRIPTOR.package
        assert name in events_pb2.DESCRIPTOR.message_types_by_name
        assert message["payload"]["schema"]["$ref"].endswith(f"#/{name}")
        schema = headers_of(document, message)
        written = {header: (value or b"").decode() for header, value in sent(message["name"]).headers}
        assert written.keys() == schema["properties"].keys()
        jsonschema.validate(written, schema)
        for header in schema["required"]:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({name: text for name, text in written.items() if name != header}, schema)


def test_a_dead_letters_headers_are_those_of_the_code(document: Mapping[str, Any]) -> None:
    (message,) = messages(document, "deadLetters")
    schema = headers_of(document, message)
    record = sent(wire.ISSUE_REQUESTED)
    failed = Record(7, 0, record.key, record.value, tuple(record.headers))
    bare = Record(8, 0, None, b"", ())
    for of, expected in ((failed, schema["properties"].keys()), (bare, set(schema["required"]))):
        dead = wire.dead_letter_message("line", 0, of, ParkReason.EMPTY, "nothing")
        written = {header: (value or b"").decode() for header, value in dead.headers}
        assert written.keys() == expected
        jsonschema.validate(written, schema)
    assert schema["properties"]["dlq-reason"]["enum"] == [reason.value for reason in ParkReason]


def test_the_page_names_every_event_header_and_reason(document: Mapping[str, Any]) -> None:
    text = (DOCS / "events.md").read_text(encoding="utf-8")
    refusals = {
        "COUPON_NOT_FOUND",
        "ALREADY_ISSUED",
        "CLOSED",
        "NOT_OPEN",
        "ENDED",
        "PAUSED",
        "SOLD_OUT",
        "REPEATED",
        "PARKED",
    }
    assert refusals <= {reason.value for reason in Reason}
    headers = {header for one in messages(document, "line") for header in headers_of(document, one)["properties"]}
    for name in (*OUTCOMES, *refusals, *headers, *(one["address"] for one in document["channels"].values())):
        assert f"`{name}" in text, name
