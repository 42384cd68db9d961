"""Page tokens."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.paging import TOKEN_LENGTH_MAX, page_token, parse_page_token


@given(st.text(), st.text(max_size=300).filter(bool))
def test_a_token_gives_back_what_it_was_made_of(filter_key: str, after: str) -> None:
    token = page_token(filter_key, after)
    if len(token) <= TOKEN_LENGTH_MAX:
        assert parse_page_token(filter_key, token) == after


@given(st.text(), st.text(), st.text())
def test_a_token_serves_its_own_filter_alone(one: str, other: str, after: str) -> None:
    if one != other:
        assert parse_page_token(other, page_token(one, after)) is None


@given(st.text(max_size=200).filter(bool))
def test_what_is_no_token_is_none(text: str) -> None:
    assert parse_page_token("coupons 0", text) is None


def test_no_token_is_the_first_page() -> None:
    assert parse_page_token("coupons 0", "") == ""


@pytest.mark.parametrize("spoil", [lambda t: t + "A", lambda t: t[:-1], lambda t: t[::-1], lambda t: "é" + t])
def test_a_spoilt_token_is_none(spoil: object) -> None:
    token = page_token("coupons 0", "spring-7")
    assert callable(spoil)
    assert parse_page_token("coupons 0", spoil(token)) is None


def test_a_token_is_opaque_and_fit_for_an_address() -> None:
    token = page_token("coupons 0", "spring")
    assert "spring" not in token
    assert token.replace("-", "").replace("_", "").isalnum()


def test_an_endless_token_is_none() -> None:
    check = hashlib.sha256(b"f\0" + b"a" * 5_000).digest()[:8]
    token = base64.urlsafe_b64encode(check + b"a" * 5_000).decode().rstrip("=")
    assert parse_page_token("f", token) is None
