"""Commands for a storage pool, to its host."""

from __future__ import annotations

from types import NoneType

from serai.schema.commands.base import Command
from serai.schema.ids import PoolId
from serai.schema.resource import Frozen
from serai.schema.volume import ExportKind, PoolDriverName, PoolStatus


class OpenPool(Frozen):
    """Open the pool, now and after every restart. `path` "": the agent's own folder for pools."""

    pool: PoolId
    driver: PoolDriverName
    path: str
    export: ExportKind


class ClosePool(Frozen):
    """Forget the pool. Its volumes must be gone; nothing is deleted that Serai did not make."""

    pool: PoolId


POOL_OPEN = Command("pool.open", OpenPool, PoolStatus, lambda body: f"pool/{body.pool}")
POOL_CLOSE = Command("pool.close", ClosePool, NoneType, lambda body: f"pool/{body.pool}")
