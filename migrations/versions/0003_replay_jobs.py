"""Replay jobs that are worked on by one dlq at a time. Only adds, so that the release before can go on."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("replay_job", sa.Column("payload_hash", sa.LargeBinary, comment="Of all that the caller asked for"))
    op.add_column(
        "replay_job",
        sa.Column(
            "checkpoint", sa.Text, nullable=False, server_default="", comment="Where to go on, as the kind has it"
        ),
    )
    op.add_column("replay_job", sa.Column("worker", sa.Text, comment="Which dlq works on it, or did last"))
    op.add_column(
        "replay_job",
        sa.Column("lease", sa.BigInteger, nullable=False, server_default="0", comment="Grows with each claim"),
    )
    op.add_column(
        "replay_job",
        sa.Column(
            "lease_until",
            sa.TIMESTAMP(timezone=True),
            comment="Nobody else takes it before; each sign of life moves it",
        ),
    )
    op.create_index(
        "replay_job_request_key",
        "replay_job",
        ["request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )
    op.create_index(
        "replay_job_unended_idx", "replay_job", ["id"], postgresql_where=sa.text("state IN ('PENDING', 'RUNNING')")
    )


def downgrade() -> None:
    raise NotImplementedError("Migrations go forward only: restore a backup, the ledger catches up from the log.")
