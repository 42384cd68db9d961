"""The tables, as SQLAlchemy describes them. `migrations/` builds exactly these (tested).

Verdict tables: every record of the line has one row, under its ticket, in `user_coupon` (ISSUED), `rejected_issue`
(REJECTED and PARKED) or `coupon_change`. `accepted_at` is the record's LogAppendTime; `issued_at`, `rejected_at` and
`changed_at` say when the ledger settled it and are all that a rebuild from the log may change.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON

REVISION = "0003"
"""The newest migration. Services start on it and on later ones, for a migration leaves what this release uses."""

metadata = sa.MetaData()


def _time(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable, server_default=default)


coupon = sa.Table(
    "coupon",
    metadata,
    sa.Column("coupon_id", sa.Text, primary_key=True),
    sa.Column("topic_partition", sa.Integer, nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("remaining", sa.BigInteger, nullable=False),
    sa.Column("issued_count", sa.BigInteger, nullable=False),
    _time("start_time", nullable=True),
    _time("end_time", nullable=True),
    sa.Column("state", sa.Text, nullable=False, comment="What an operator has set: ACTIVE, PAUSED or CLOSED"),
    sa.Column("etag", sa.Text, nullable=False, comment="The ticket of the last change"),
    _time("create_time"),
    _time("update_time"),
    sa.CheckConstraint("remaining >= 0", name="coupon_remaining_check"),
    sa.CheckConstraint("total = remaining + issued_count", name="coupon_total_check"),
    sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'CLOSED')", name="coupon_state_check"),
)

user_coupon = sa.Table(
    "user_coupon",
    metadata,
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("coupon_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("ticket_partition", sa.Integer, nullable=False),
    sa.Column("ticket_offset", sa.BigInteger, nullable=False),
    sa.Column("redrive_of", sa.Text),
    _time("accepted_at"),
    _time("issued_at", now=True),
    sa.PrimaryKeyConstraint("user_id", "coupon_id", name="user_coupon_pkey"),
    sa.UniqueConstraint("coupon_id", "sequence", name="user_coupon_sequence_key"),
    sa.UniqueConstraint("ticket_partition", "ticket_offset", name="user_coupon_ticket_key"),
)

rejected_issue = sa.Table(
    "rejected_issue",
    metadata,
    sa.Column("ticket_partition", sa.Integer, nullable=False),
    sa.Column("ticket_offset", sa.BigInteger, nullable=False),
    sa.Column("coupon_id", sa.Text),
    sa.Column("user_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, comment="For PARKED: the dead letter's reason and message, '<REASON>: <message>'"),
    sa.Column("issued_ticket", sa.Text, comment="For REPEATED: the grant that it repeats"),
    sa.Column("issued_sequence", sa.BigInteger),
    sa.Column("redrive_of", sa.Text),
    _time("accepted_at"),
    _time("rejected_at", now=True),
    sa.PrimaryKeyConstraint("ticket_partition", "ticket_offset", name="rejected_issue_pkey"),
)

coupon_change = sa.Table(
    "coupon_change",
    metadata,
    sa.Column("ticket_partition", sa.Integer, nullable=False),
    sa.Column("ticket_offset", sa.BigInteger, nullable=False),
    sa.Column("coupon_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("payload_hash", sa.LargeBinary, nullable=False),
    sa.Column("result", sa.Text, nullable=False, comment="APPLIED, REPEATED or the reason of the refusal"),
    sa.Column("outcome", sa.LargeBinary, nullable=False, comment="The published CouponChangedEvent, whole"),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("redrive_of", sa.Text),
    _time("accepted_at"),
    _time("changed_at", now=True),
    sa.PrimaryKeyConstraint("ticket_partition", "ticket_offset", name="coupon_change_pkey"),
)

ledger_progress = sa.Table(
    "ledger_progress",
    metadata,
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("published_offset", sa.BigInteger, nullable=False),
    sa.Column("dlq_offset", sa.BigInteger, nullable=False),
    sa.Column("last_offset", sa.BigInteger),
    sa.Column("last_timestamp", sa.BigInteger, comment="Milliseconds since the epoch, as Kafka has it"),
    sa.Column("last_checksum", sa.BigInteger),
    sa.PrimaryKeyConstraint("topic", "partition", name="ledger_progress_pkey"),
)

dead_letter = sa.Table(
    "dead_letter",
    metadata,
    sa.Column("ticket_partition", sa.Integer, nullable=False, comment="Of the original record, also for a redrive"),
    sa.Column("ticket_offset", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("error_message", sa.Text, nullable=False),
    sa.Column("coupon_id", sa.Text),
    sa.Column("user_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("redrive_ticket", sa.Text, comment="The record that redrove it last"),
    sa.Column("attempt_count", sa.Integer, nullable=False, comment="How often it failed"),
    sa.Column("key", sa.LargeBinary),
    sa.Column("value", sa.LargeBinary),
    # json, for jsonb can't hold the NUL that a header's name may have.
    sa.Column("headers", JSON, nullable=False, comment="As on the line: [[name, base64 or null], …]"),
    sa.Column("trace_id", sa.Text),
    _time("record_time"),
    _time("first_failed_at"),
    _time("last_failed_at"),
    _time("next_attempt_at", nullable=True),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("corrected_value", sa.LargeBinary, comment="What a redrive publishes instead of value, once corrected"),
    sa.Column("corrected_headers", JSON, comment="Likewise, as headers"),
    sa.Column("corrected_coupon_id", sa.Text, comment="Likewise, and the record's key"),
    sa.Column(
        "publishing",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="Whether a redrive may be in the line that redrive_ticket does not know of",
    ),
    sa.PrimaryKeyConstraint("ticket_partition", "ticket_offset", name="dead_letter_pkey"),
    sa.CheckConstraint(
        "state IN ('RETRYING', 'PARKED', 'REDRIVEN', 'RESOLVED', 'DISCARDED')", name="dead_letter_state_check"
    ),
)

dead_letter_action = sa.Table(
    "dead_letter_action",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("ticket_partition", sa.Integer, nullable=False),
    sa.Column("ticket_offset", sa.BigInteger, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("record", sa.Text, comment="The ticket that failed or was published; a failure counts once"),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False, server_default=""),
    _time("acted_at", now=True),
    sa.Column("request_id", sa.Text, comment="Of the operator's call"),
    sa.Column("payload_hash", sa.LargeBinary, comment="Of the operator's call"),
)

replay_job = sa.Table(
    "replay_job",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("job", sa.LargeBinary, nullable=False, comment="coupon.v1.ReplayJob"),
    sa.Column("request_id", sa.Text),
    sa.Column("caller", sa.Text, nullable=False),
    _time("create_time", now=True),
    _time("update_time", now=True),
    sa.Column("payload_hash", sa.LargeBinary, comment="Of all that the caller asked for"),
    sa.Column("checkpoint", sa.Text, nullable=False, server_default="", comment="Where to go on, as the kind has it"),
    sa.Column("worker", sa.Text, comment="Which dlq works on it, or did last"),
    sa.Column("lease", sa.BigInteger, nullable=False, server_default="0", comment="Grows with each claim"),
    sa.Column(
        "lease_until", sa.TIMESTAMP(timezone=True), comment="Nobody else takes it before; each sign of life moves it"
    ),
)

sa.Index(
    "coupon_change_request_key",
    coupon_change.c.coupon_id,
    coupon_change.c.request_id,
    unique=True,
    postgresql_where=sa.text("result <> 'REPEATED'"),
)
for _table in (user_coupon, rejected_issue, coupon_change):
    sa.Index(f"{_table.name}_redrive_idx", _table.c.redrive_of, postgresql_where=_table.c.redrive_of.is_not(None))
sa.Index("dead_letter_due_idx", dead_letter.c.next_attempt_at, postgresql_where=sa.text("state = 'RETRYING'"))
sa.Index("dead_letter_state_idx", dead_letter.c.state, dead_letter.c.ticket_partition, dead_letter.c.ticket_offset)
sa.Index(
    "dead_letter_action_failure_key",
    dead_letter_action.c.ticket_partition,
    dead_letter_action.c.ticket_offset,
    dead_letter_action.c.record,
    unique=True,
    postgresql_where=sa.text("action = 'FAILED'"),
)
sa.Index(
    "dead_letter_action_request_key",
    dead_letter_action.c.ticket_partition,
    dead_letter_action.c.ticket_offset,
    dead_letter_action.c.request_id,
    unique=True,
    postgresql_where=dead_letter_action.c.request_id.is_not(None),
)
sa.Index(
    "dead_letter_action_letter_idx",
    dead_letter_action.c.ticket_partition,
    dead_letter_action.c.ticket_offset,
    dead_letter_action.c.id,
)
for _column in (dead_letter.c.reason, dead_letter.c.coupon_id, dead_letter.c.user_id):
    sa.Index(f"dead_letter_{_column.name}_idx", _column, dead_letter.c.ticket_partition, dead_letter.c.ticket_offset)
sa.Index("dead_letter_failed_idx", dead_letter.c.last_failed_at)
sa.Index(
    "replay_job_request_key",
    replay_job.c.request_id,
    unique=True,
    postgresql_where=replay_job.c.request_id.is_not(None),
)
sa.Index("replay_job_unended_idx", replay_job.c.id, postgresql_where=sa.text("state IN ('PENDING', 'RUNNING')"))
