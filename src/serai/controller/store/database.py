"""Opening the database: two engines, one that only reads and one that writes, and the migrations.

On SQLite: WAL, so that readers never wait for the writer; `synchronous=FULL`, so that a commit is on the disk before
anyone is told of it; foreign keys on. Python's own transaction guessing is switched off: BEGIN is said by us, and the
writer says BEGIN IMMEDIATE, so that it never fails halfway for want of the lock.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_MS = 10_000
"""Milliseconds to wait for another process's lock (a backup, an operator's shell)."""
READERS = 4


def _dump(value: Any) -> str:
    # Pydantic's JSON, in both directions: faster than the standard library's, which counts in lists, and what it writes
    # it can read, while the other writes half a surrogate pair.
    return to_json(value).decode()


def open_engine(file: Path, *, write: bool) -> AsyncEngine:
    """An engine on an SQLite file; made with mode 0600 if absent."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{file}",
        pool_size=1 if write else READERS,
        max_overflow=0,
        json_serializer=_dump,
        json_deserializer=from_json,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"query_only={'OFF' if write else 'ON'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's settings, without a file of its own."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def migrate(engine: AsyncEngine) -> None:
    """Bring the tables to the newest version, in one transaction; a database that is there already is not touched."""

    def to_head(connection: Connection) -> None:
        config = alembic_config(connection)
        head = ScriptDirectory.from_config(config).get_current_head()
        if MigrationContext.configure(connection).get_current_revision() != head:
            command.upgrade(config, "head")

    async with engine.begin() as connection:
        await connection.run_sync(to_head)
