"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "coupon",
        sa.Column("coupon_id", sa.Text, nullable=False),
        sa.Column("topic_partition", sa.Integer, nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("remaining", sa.BigInteger, nullable=False),
        sa.Column("issued_count", sa.BigInteger, nullable=False),
        sa.Column("start_time", _TIME),
        sa.Column("end_time", _TIME),
        sa.Column("state", sa.Text, nullable=False, comment="What an operator has set: ACTIVE, PAUSED or CLOSED"),
        sa.Column("etag", sa.Text, nullable=False, comment="The ticket of the last change"),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("update_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("coupon_id", name="coupon_pkey"),
        sa.CheckConstraint("remaining >= 0", name="coupon_remaining_check"),
        sa.CheckConstraint("total = remaining + issued_count", name="coupon_total_check"),
        sa.CheckConstraint("state IN ('ACTIVE', 'PAUSED', 'CLOSED')", name="coupon_state_check"),
    )

    op.create_table(
        "user_coupon",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("coupon_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("ticket_partition", sa.Integer, nullable=False),
        sa.Column("ticket_offset", sa.BigInteger, nullable=False),
        sa.Column("redrive_of", sa.Text),
        sa.Column("accepted_at", _TIME, nullable=False),
        sa.Column("issued_at", _TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("user_id", "coupon_id", name="user_coupon_pkey"),
        sa.UniqueConstraint("coupon_id", "sequence", name="user_coupon_sequence_key"),
        sa.UniqueConstraint("ticket_partition", "ticket_offset", name="user_coupon_ticket_key"),
    )
    _redrive_index("user_coupon")

    op.create_table(
        "rejected_issue",
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
        sa.Column("accepted_at", _TIME, nullable=False),
        sa.Column("rejected_at", _TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("ticket_partition", "ticket_offset", name="rejected_issue_pkey"),
    )
    _redrive_index("rejected_issue")

    op.create_table(
        "coupon_change",
        sa.Column("ticket_partition", sa.Integer, nullable=False),
        sa.Column("ticket_offset", sa.BigInteger, nullable=False),
        sa.Column("coupon_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("payload_hash", sa.LargeBinary, nullable=False),
        sa.Column("result", sa.Text, nullable=False, comment="APPLIED, REPEATED or the reason of the refusal"),
        sa.Column("outcome", sa.LargeBinary, nullable=False, comment="The published CouponChangedEvent, whole"),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("redrive_of", sa.Text),
        sa.Column("accepted_at", _TIME, nullable=False),
        sa.Column("changed_at", _TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("ticket_partition", "ticket_offset", name="coupon_change_pkey"),
    )
    op.create_index(
        "coupon_change_request_key",
        "coupon_change",
        ["coupon_id", "request_id"],
        unique=True,
        postgresql_where=sa.text("result <> 'REPEATED'"),
    )
    _redrive_index("coupon_change")

    op.create_table(
        "ledger_progress",
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

    op.create_table(
        "dead_letter",
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
        sa.Column("headers", JSON, nullable=False, comment="As on the line: [[name, base64 or null], …]"),
        sa.Column("trace_id", sa.Text),
        sa.Column("record_time", _TIME, nullable=False),
        sa.Column("first_failed_at", _TIME, nullable=False),
        sa.Column("last_failed_at", _TIME, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("ticket_partition", "ticket_offset", name="dead_letter_pkey"),
        sa.CheckConstraint(
            "state IN ('RETRYING', 'PARKED', 'REDRIVEN', 'RESOLVED', 'DISCARDED')", name="dead_letter_state_check"
        ),
    )
    op.create_index(
        "dead_letter_due_idx", "dead_letter", ["next_attempt_at"], postgresql_where=sa.text("state = 'RETRYING'")
    )
    op.create_index("dead_letter_state_idx", "dead_letter", ["state", "ticket_partition", "ticket_offset"])

    op.create_table(
        "dead_letter_action",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("ticket_partition", sa.Integer, nullable=False),
        sa.Column("ticket_offset", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("record", sa.Text, comment="The ticket that failed or was published; a failure counts once"),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False, server_default=""),
        sa.Column("acted_at", _TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="dead_letter_action_pkey"),
    )
    op.create_index(
        "dead_letter_action_failure_key",
        "dead_letter_action",
        ["ticket_partition", "ticket_offset", "record"],
        unique=True,
        postgresql_where=sa.text("action = 'FAILED'"),
    )

    op.create_table(
        "replay_job",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("job", sa.LargeBinary, nullable=False, comment="coupon.v1.ReplayJob"),
        sa.Column("request_id", sa.Text),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.text("now()")),
        sa.Column("update_time", _TIME, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="replay_job_pkey"),
    )


def downgrade() -> None:
    raise NotImplementedError("Migrations go forward only: restore a backup, the ledger catches up from the log.")


def _redrive_index(table: str) -> None:
    op.create_index(f"{table}_redrive_idx", table, ["redrive_of"], postgresql_where=sa.text("redrive_of IS NOT NULL"))
