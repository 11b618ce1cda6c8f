"""Runs, segments, counters, pairs, tokens and marks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the first tables. Written out here: what `tables.py` says later must not change what this does."""
    op.create_table(
        "profile_runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("uuid", sa.String(36), nullable=False, unique=True),
        sa.Column("identity", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("model_class", sa.String(255), nullable=False),
        sa.Column("started", sa.String(20), nullable=False),
        sa.Column("tool_version", sa.String(64), nullable=False),
        sa.Column("label", sa.String(255), nullable=False),
        sa.Column("tokenizer", sa.String(255), nullable=False),
    )
    op.create_index("ix_profile_runs_identity", "profile_runs", ["identity"])
    op.create_table(
        "profile_banks",
        sa.Column("id", sa.Integer, primary_key=True),
        _run_id(primary_key=False),
        sa.Column("component", sa.String(64), nullable=False),
        sa.Column("layer", sa.Integer, nullable=False),
        sa.Column("bank", sa.String(64), nullable=False),
        sa.Column("experts", sa.Integer, nullable=False),
        sa.Column("top_k", sa.Integer, nullable=False),
        sa.UniqueConstraint("run_id", "component", "layer", "bank"),
    )
    op.create_table(
        "profile_groups",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.UniqueConstraint("modality", "domain", "phase"),
    )
    op.create_table(
        "profile_segments",
        _run_id(),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
    )
    _create_counters()
    op.create_table(
        "profile_marks",
        _run_id(),
        sa.Column("input", sa.String(32), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
    )


def _create_counters() -> None:
    op.create_table(
        "profile_counts",
        _run_id(),
        sa.Column("segment", sa.Integer, primary_key=True, autoincrement=False),
        _bank_id(),
        sa.Column("group_id", sa.Integer, sa.ForeignKey("profile_groups.id"), primary_key=True),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("entropy_sum", sa.Double, nullable=False),
        sa.Column("entropy_squares", sa.Double, nullable=False),
        sa.Column("activations", sa.LargeBinary, nullable=False),
        sa.Column("gate_mass", sa.LargeBinary, nullable=False),
        sa.Column("reap_sum", sa.LargeBinary, nullable=False),
        sa.Column("reap_counts", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "profile_pairs",
        _run_id(),
        sa.Column("segment", sa.Integer, primary_key=True, autoincrement=False),
        _bank_id(),
        sa.Column("counts", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "profile_vocabulary",
        _run_id(),
        _bank_id(),
        sa.Column("segments", sa.Integer, nullable=False),
        sa.Column("counts", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "profile_token_totals",
        _run_id(),
        sa.Column("component", sa.String(64), primary_key=True),
        sa.Column("bank", sa.String(64), primary_key=True),
        sa.Column("segments", sa.Integer, nullable=False),
        sa.Column("counts", sa.LargeBinary, nullable=False),
    )


def _run_id(*, primary_key: bool = True) -> sa.Column[int]:
    key = sa.ForeignKey("profile_runs.id", ondelete="CASCADE")
    return sa.Column("run_id", sa.Integer, key, primary_key=primary_key, nullable=False)


def _bank_id() -> sa.Column[int]:
    return sa.Column("bank_id", sa.Integer, sa.ForeignKey("profile_banks.id", ondelete="CASCADE"), primary_key=True)


def downgrade() -> None:
    """There is nothing before the first revision."""
    raise NotImplementedError
