"""Dead letters that operators correct, retry, discard and look for. Only adds, so that the release before can go on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "dead_letter",
        sa.Column(
            "corrected_value", sa.LargeBinary, comment="What a redrive publishes instead of value, once corrected"
        ),
    )
    op.add_column("dead_letter", sa.Column("corrected_headers", JSON, comment="Likewise, as headers"))
    op.add_column("dead_letter", sa.Column("corrected_coupon_id", sa.Text, comment="Likewise, and the record's key"))
    op.add_column(
        "dead_letter",
        sa.Column(
            "publishing",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="Whether a redrive may be in the line that redrive_ticket does not know of",
        ),
    )
    op.add_column("dead_letter_action", sa.Column("request_id", sa.Text, comment="Of the operator's call"))
    op.add_column("dead_letter_action", sa.Column("payload_hash", sa.LargeBinary, comment="Of the operator's call"))
    op.create_index(
        "dead_letter_action_request_key",
        "dead_letter_action",
        ["ticket_partition", "ticket_offset", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index("dead_letter_action_letter_idx", "dead_letter_action", ["ticket_partition", "ticket_offset", "id"])
    for column in ("reason", "coupon_id", "user_id"):
        op.create_index(f"dead_letter_{column}_idx", "dead_letter", [column, "ticket_partition", "ticket_offset"])
    op.create_index("dead_letter_failed_idx", "dead_letter", ["last_failed_at"])


def downgrade() -> None:
    raise NotImplementedError("Migrations go forward only: restore a backup, the ledger catches up from the log.")
