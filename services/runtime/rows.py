"""What the tables' rows hold, as values of the domain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.domain.model import Coupon, Switch
from services.runtime.postgres import BooksWrong


def listed(ids: Iterable[str]) -> str:
    """Ids as one text, for SQL's string_to_array: of an array's items the driver looks at each, at 0.25 µs a look."""
    return ",".join(ids)  # which no id has in it


GRANTS_OF_LISTED = """
FROM unnest(string_to_array($1, ','), string_to_array($2, ',')) AS asked (user_id, coupon_id)
JOIN user_coupon g ON g.user_id = asked.user_id
    AND (g.user_id, g.coupon_id) >= (asked.user_id, asked.coupon_id)
    AND (g.user_id, g.coupon_id) <= (asked.user_id, asked.coupon_id)"""
"""What these users ($1) have of these coupons ($2), each `listed`, as rows g.

Only the primary key serves comparisons of pairs. By equality PostgreSQL might take the index of sequences, which looks
as good while it believes that each coupon has one row, and read all of a hot coupon for each user.
"""


def to_coupon(row: Any) -> Coupon:
    return Coupon(
        coupon_id=row["coupon_id"],
        partition=row["topic_partition"],
        display_name=row["display_name"],
        total=row["total"],
        remaining=row["remaining"],
        issued=row["issued_count"],
        start_us=row["start_time"],
        end_us=row["end_time"],
        switch=Switch(row["state"]),
        etag=row["etag"],
        create_us=row["create_time"],
        update_us=row["update_time"],
    )


def expect(wanted: str, status: str) -> None:
    """That a statement did to as many rows as was due, by PostgreSQL's word for it. Raises BooksWrong."""
    if status != wanted:
        raise BooksWrong(f"{status} where {wanted} was due")
