"""The tables. Times are text in ISO 8601; what has fields of its own is JSON, by SQLAlchemy's type for it.

Every resource table has the columns of the resource shape (schema/resource.py) and, beside them, copies of those fields
that queries use: references, states, sums. `resources.py` writes both together, so that they never differ.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.types import JSON

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


OPTIONAL = JSON(none_as_null=True)


def _resource(name: str, *columns: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        Column("id", String(12), primary_key=True),
        Column("name", String(63), nullable=False, unique=True),
        Column("generation", Integer, nullable=False),
        Column("labels", JSON, nullable=False),
        Column("description", Text, nullable=False),
        Column("created", String(40), nullable=False),
        Column("spec", JSON, nullable=False),
        Column("status", JSON, nullable=False),
        *columns,
    )


hosts = _resource("hosts", Column("state", String(16), nullable=False))
pools = _resource("pools", Column("host", String(63), nullable=False, index=True))
volumes = _resource(
    "volumes",
    Column("pool", String(12), nullable=False, index=True),
    Column("image", String(12), index=True),
    Column("vm", String(12), index=True),
    Column("size", BigInteger, nullable=False),
)
images = _resource("images", Column("state", String(16), nullable=False))
networks = _resource("networks", Column("bridge", String(15), nullable=False))
vms = _resource(
    "vms",
    Column("host", String(63), index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("image", String(12), index=True),
    Column("cpus", Integer, nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("running", Boolean, nullable=False),
    Column("report_epoch", Integer, nullable=False, server_default="0"),
    Column("report_starts", Integer, nullable=False, server_default="0"),
    Column("report_sequence", BigInteger, nullable=False, server_default="0"),
)

labels = Table(
    "labels",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("resource_id", String(12), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("value", Text, nullable=False),
    Index("ix_labels_kind_key_value", "kind", "key", "value"),
)

addresses = Table(
    "addresses",
    metadata,
    Column("network_id", String(12), ForeignKey("networks.id"), primary_key=True),
    Column("ip", String(15), primary_key=True),
    Column("mac", String(17), nullable=False, unique=True),
    Column("vm_id", String(12), ForeignKey("vms.id", ondelete="CASCADE"), nullable=False, index=True),
)

leases = Table(
    "leases",
    metadata,
    Column("vm", String(12), ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("host", String(63), nullable=False, index=True),
    Column("highest", Integer, nullable=False),
    Column("offered_to", String(63)),
    Column("offer_id", String(64)),
    Column("ended", Integer, nullable=False, server_default="0"),
    Column("updated", String(40), nullable=False),
)

lineage = Table(
    "lineage",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("restored", Boolean, nullable=False),
)
"""One row; see `lineage.py`."""

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(12), nullable=False, unique=True),
    Column("sequence", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
"""Starts of the controller, each with the sequence at its begin."""

incarnations = Table(
    "incarnations",
    metadata,
    Column("host", String(63), primary_key=True),
    Column("journal", String(12), nullable=False),
    Column("starts", BigInteger, nullable=False),
)

leftovers = Table(
    "leftovers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("host", String(63), nullable=False, index=True),
    Column("command", String(32), nullable=False),
    Column("key", String(80), nullable=False),
    Column("body", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("since", String(40), nullable=False),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(12), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("target", String(80), nullable=False, index=True),
    Column("target_id", String(12), index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("requested_by", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("waits_for", Text, nullable=False),
    Column("params", JSON, nullable=False),
    Column("steps", JSON, nullable=False),
    Column("progress", Float),
    Column("message", Text, nullable=False),
    Column("result", OPTIONAL),
    Column("error", OPTIONAL),
    Column("created", String(40), nullable=False),
    Column("started", String(40)),
    Column("ended", String(40)),
    Column("memory", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("time", String(40), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("resource", String(80), nullable=False),
    Column("resource_id", String(12), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
    # Numbers of events that were cleared away are never given again: `?after=N` must stay true for ever.
    sqlite_autoincrement=True,
)

tickets = Table(
    "tickets",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("ticket", JSON, nullable=False),
    Column("expires", String(40), nullable=False, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("created", String(40), nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    Column("owner", String(80), primary_key=True),
    Column("name", String(80), primary_key=True),
    Column("value", Text, nullable=False),
)
