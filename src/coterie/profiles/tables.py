"""The tables of a profile, as the newest migration leaves them. Columns are explained in docs/profiles.md."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

HEAD = "0001"
"""Revision of the newest migration."""
REVISIONS = ("0001",)
"""All revisions, oldest first. Migrations are only ever appended."""
APPLICATION_ID = 0x436F7465
"""What marks an SQLite file as a profile (`Cote`)."""

metadata = MetaData()

runs = Table(
    "profile_runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("identity", String(64), nullable=False, index=True),
    Column("model", String(255), nullable=False),
    Column("model_class", String(255), nullable=False),
    Column("started", String(20), nullable=False),
    Column("tool_version", String(64), nullable=False),
    Column("label", String(255), nullable=False),
    Column("tokenizer", String(255), nullable=False),
)

banks = Table(
    "profile_banks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), nullable=False),
    Column("component", String(64), nullable=False),
    Column("layer", Integer, nullable=False),
    Column("bank", String(64), nullable=False),
    Column("experts", Integer, nullable=False),
    Column("top_k", Integer, nullable=False),
    UniqueConstraint("run_id", "component", "layer", "bank"),
)

groups = Table(
    "profile_groups",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("modality", String(16), nullable=False),
    Column("domain", String(64), nullable=False),
    Column("phase", String(16), nullable=False),
    UniqueConstraint("modality", "domain", "phase"),
)

segments = Table(
    "profile_segments",
    metadata,
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("tokens", BigInteger, nullable=False),
    Column("digest", String(32), nullable=False),
)

counts = Table(
    "profile_counts",
    metadata,
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("segment", Integer, primary_key=True, autoincrement=False),
    Column("bank_id", ForeignKey("profile_banks.id", ondelete="CASCADE"), primary_key=True),
    Column("group_id", ForeignKey("profile_groups.id"), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("entropy_sum", Double, nullable=False),
    Column("entropy_squares", Double, nullable=False),
    Column("activations", LargeBinary, nullable=False),
    Column("gate_mass", LargeBinary, nullable=False),
    Column("reap_sum", LargeBinary, nullable=False),
    Column("reap_counts", LargeBinary, nullable=False),
)

pairs = Table(
    "profile_pairs",
    metadata,
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("segment", Integer, primary_key=True, autoincrement=False),
    Column("bank_id", ForeignKey("profile_banks.id", ondelete="CASCADE"), primary_key=True),
    Column("counts", LargeBinary, nullable=False),
)

vocabulary = Table(
    "profile_vocabulary",
    metadata,
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("bank_id", ForeignKey("profile_banks.id", ondelete="CASCADE"), primary_key=True),
    Column("segments", Integer, nullable=False),
    Column("counts", LargeBinary, nullable=False),
)

token_totals = Table(
    "profile_token_totals",
    metadata,
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("component", String(64), primary_key=True),
    Column("bank", String(64), primary_key=True),
    Column("segments", Integer, nullable=False),
    Column("counts", LargeBinary, nullable=False),
)

marks = Table(
    "profile_marks",
    metadata,
    Column("run_id", ForeignKey("profile_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("input", String(32), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("done", Boolean, nullable=False),
)
