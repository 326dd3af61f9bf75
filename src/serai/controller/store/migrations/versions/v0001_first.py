"""The first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

RESOURCES: dict[str, tuple[sa.Column[Any], ...]] = {
    "hosts": (sa.Column("state", sa.String(16), nullable=False),),
    "pools": (sa.Column("host", sa.String(63), nullable=False, index=True),),
    "volumes": (
        sa.Column("pool", sa.String(12), nullable=False, index=True),
        sa.Column("image", sa.String(12), index=True),
        sa.Column("vm", sa.String(12), index=True),
        sa.Column("size", sa.BigInteger, nullable=False),
    ),
    "images": (sa.Column("state", sa.String(16), nullable=False),),
    "networks": (sa.Column("bridge", sa.String(15), nullable=False),),
    "vms": (
        sa.Column("host", sa.String(63), index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("image", sa.String(12), index=True),
        sa.Column("cpus", sa.Integer, nullable=False),
        sa.Column("memory", sa.BigInteger, nullable=False),
        sa.Column("running", sa.Boolean, nullable=False),
        sa.Column("report_epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("report_starts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("report_sequence", sa.BigInteger, nullable=False, server_default="0"),
    ),
}


def upgrade() -> None:
    """Make them all."""
    for name, columns in RESOURCES.items():
        op.create_table(
            name,
            sa.Column("id", sa.String(12), primary_key=True),
            sa.Column("name", sa.String(63), nullable=False, unique=True),
            sa.Column("generation", sa.Integer, nullable=False),
            sa.Column("labels", sa.JSON, nullable=False),
            sa.Column("description", sa.Text, nullable=False),
            sa.Column("created", sa.String(40), nullable=False),
            sa.Column("spec", sa.JSON, nullable=False),
            sa.Column("status", sa.JSON, nullable=False),
            *columns,
        )
    _beside_resources()
    _rights()
    _jobs_and_events()
    _secrets()


def _beside_resources() -> None:
    op.create_table(
        "labels",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("resource_id", sa.String(12), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_index("ix_labels_kind_key_value", "labels", ["kind", "key", "value"])
    op.create_table(
        "addresses",
        sa.Column("network_id", sa.String(12), sa.ForeignKey("networks.id"), primary_key=True),
        sa.Column("ip", sa.String(15), primary_key=True),
        sa.Column("mac", sa.String(17), nullable=False, unique=True),
        sa.Column("vm_id", sa.String(12), sa.ForeignKey("vms.id", ondelete="CASCADE"), nullable=False, index=True),
    )
    op.create_table(
        "leases",
        sa.Column("vm", sa.String(12), sa.ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("host", sa.String(63), nullable=False, index=True),
        sa.Column("highest", sa.Integer, nullable=False),
        sa.Column("offered_to", sa.String(63)),
        sa.Column("offer_id", sa.String(64)),
        sa.Column("ended", sa.Integer, nullable=False, server_default="0"),
        sa.Column("updated", sa.String(40), nullable=False),
    )


def _rights() -> None:
    lineage = op.create_table(
        "lineage",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("restored", sa.Boolean, nullable=False),
    )
    op.bulk_insert(lineage, [{"id": 1, "sequence": 0, "restored": False}])
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(12), nullable=False, unique=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "incarnations",
        sa.Column("host", sa.String(63), primary_key=True),
        sa.Column("journal", sa.String(12), nullable=False),
        sa.Column("starts", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "leftovers",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("host", sa.String(63), nullable=False, index=True),
        sa.Column("command", sa.String(32), nullable=False),
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("since", sa.String(40), nullable=False),
        sqlite_autoincrement=True,
    )


def _jobs_and_events() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(12), nullable=False, unique=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("target", sa.String(80), nullable=False, index=True),
        sa.Column("target_id", sa.String(12), index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("requested_by", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("waits_for", sa.Text, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("progress", sa.Float),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("created", sa.String(40), nullable=False),
        sa.Column("started", sa.String(40)),
        sa.Column("ended", sa.String(40)),
        sa.Column("memory", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("resource", sa.String(80), nullable=False),
        sa.Column("resource_id", sa.String(12), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )


def _secrets() -> None:
    op.create_table(
        "tickets",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("ticket", sa.JSON, nullable=False),
        sa.Column("expires", sa.String(40), nullable=False, index=True),
    )
    op.create_table(
        "tokens",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("created", sa.String(40), nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("owner", sa.String(80), primary_key=True),
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Before the first tables there is nothing to go back to."""
    raise NotImplementedError("there is no version before the first")
