"""Which texts are ids, request ids and tickets."""

from __future__ import annotations

from itertools import product

import pytest

from services.domain.model import (
    MESSAGE_BYTES_MAX,
    Ticket,
    are_ids,
    are_request_ids,
    is_id,
    is_request_id,
    printable,
)

UUID = "123e4567-e89b-12d3-a456-426614174000"

# Digits and letters to Unicode, but not of the alphabet.
ODD_CHARACTERS = [
    "\N{ARABIC-INDIC DIGIT ONE}",
    "\N{FULLWIDTH DIGIT ONE}",
    "\N{SUPERSCRIPT TWO}",
    "\N{FULLWIDTH LATIN SMALL LETTER A}",
    "\N{CYRILLIC SMALL LETTER A}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\N{KELVIN SIGN}",
    "\N{LATIN SMALL LETTER LONG S}",
    "\N{ZERO WIDTH SPACE}",
    "\ud800",
]


@pytest.mark.parametrize("text", ["a", "Z", "0", "a" * 128, "user.1_2~x@mail:80+tag-9", "-", ".", ".."])
def test_ids_are_1_to_128_of_the_allowed_characters(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize("text", ["", "a" * 129, "a b", "a/b", "a%b", "a,b", "a*", "a\\b", "a'b", 'a"b', "a\tb"])
def test_other_lengths_and_characters_are_no_ids(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize("odd", ODD_CHARACTERS)
def test_letters_and_digits_of_other_scripts_are_no_ids(odd: str) -> None:
    assert not is_id(odd)
    assert not is_id(f"user{odd}")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\0", " ", "\u2028", "\x85"])
def test_a_line_break_or_nul_at_the_end_makes_no_id_request_id_or_ticket(end: str) -> None:
    assert not is_id(f"user{end}")
    assert not is_id(f"{end}user")
    assert not is_request_id(f"{UUID}{end}")
    assert Ticket.parse(f"3-14{end}") is None
    assert Ticket.parse(f"{end}3-14") is None


@pytest.mark.parametrize("text", [UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000", "f" * 8 + UUID[8:]])
def test_a_request_id_is_a_uuid_of_36_characters_in_either_case(text: str) -> None:
    assert is_request_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        UUID.replace("-", ""),
        f"{{{UUID}}}",
        f"urn:uuid:{UUID}",
        UUID[:-1],
        f"{UUID}0",
        UUID.replace("-", "_"),
        f"g{UUID[1:]}",
        f" {UUID[1:]}",
        UUID[:9] + "-" + UUID[9:-1],
    ],
)
def test_other_forms_are_no_request_id(text: str) -> None:
    assert not is_request_id(text)


ALL_KINDS = [
    "a", "b" * 128, "c" * 129, "", "a b", "a/b", "a,b", "a\n", "\0", UUID, UUID.upper(), UUID[:-1],
    f"{UUID}0", f"g{UUID[1:]}", UUID.replace("-", ""), UUID.replace("-", "_"),
    UUID[1:9] + UUID[0] + UUID[9:], UUID[:8] + UUID[9:] + "-", "-" * 36, "0" * 36,
    *ODD_CHARACTERS, *(odd + UUID[1:] for odd in ODD_CHARACTERS),
]  # fmt: skip


def test_many_are_ids_or_request_ids_where_each_is_one() -> None:
    for count in range(3):
        for texts in product(ALL_KINDS, repeat=count):
            assert are_ids(texts) == all(map(is_id, texts)), texts
            assert are_request_ids(texts) == all(map(is_request_id, texts)), texts


@pytest.mark.parametrize("odd", ODD_CHARACTERS)
def test_digits_of_other_scripts_make_no_request_id_and_no_ticket(odd: str) -> None:
    assert not is_request_id(odd + UUID[1:])
    assert Ticket.parse(f"{odd}-1") is None
    assert Ticket.parse(f"1-{odd}") is None


@pytest.mark.parametrize("ticket", [Ticket(0, 0), Ticket(11, 123), Ticket(2**31 - 1, 2**63 - 1)])
def test_a_ticket_is_read_back_as_it_is_written(ticket: Ticket) -> None:
    assert Ticket.parse(str(ticket)) == ticket


def test_a_ticket_is_written_as_partition_and_offset() -> None:
    assert str(Ticket(3, 14)) == "3-14"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "3",
        "3-",
        "-3",
        "3-14-1",
        "03-14",
        "3-014",
        "00-0",
        "+3-14",
        "3--14",
        "3-1_4",
        " 3-14",
        "3 -14",
        "3.0-14",
    ],
)
def test_a_ticket_has_one_way_to_be_written(text: str) -> None:
    assert Ticket.parse(text) is None


@pytest.mark.parametrize("text", [f"{2**31}-0", f"0-{2**63}", f"{10**10}-0", f"0-{10**19}", "9" * 5000 + "-1"])
def test_numbers_beyond_kafkas_are_no_ticket(text: str) -> None:
    assert Ticket.parse(text) is None


def test_tickets_of_a_partition_are_ordered_by_offset_as_numbers() -> None:
    assert sorted([Ticket(1, 10), Ticket(1, 9), Ticket(0, 99)]) == [Ticket(0, 99), Ticket(1, 9), Ticket(1, 10)]


@pytest.mark.parametrize("odd", ["\0", "\n", "\x1b", "\u202e", "\ud800"])
def test_a_printable_message_has_no_control_characters(odd: str) -> None:
    shown = printable(f"a{odd}b")
    assert shown.isprintable()
    assert shown.startswith("a")
    assert shown.endswith("b")


@pytest.mark.parametrize("text", ["x" * 5_000, "한" * 5_000, "a" + "😀" * 5_000])
def test_a_printable_message_is_cut_at_a_whole_character(text: str) -> None:
    shown = printable(text)
    assert text.startswith(shown)
    assert MESSAGE_BYTES_MAX - 4 < len(shown.encode()) <= MESSAGE_BYTES_MAX
