"""Pools: made and deleted."""

from __future__ import annotations

from pathlib import PurePosixPath

from serai.controller.services.absent import leave_out
from serai.controller.services.checks import need_online, refuse_while
from serai.controller.services.create import add
from serai.controller.services.requester import Action, Requester
from serai.controller.store import Transaction
from serai.controller.workflows.pools import CREATE_POOL, DELETE_POOL, DeletePoolParams, PoolParams
from serai.lib.ids import new_id
from serai.lib.invalid import shown
from serai.schema.commands.pool import POOL_CLOSE, ClosePool
from serai.schema.errors import ConflictError, InvalidError, UnsupportedError
from serai.schema.host import Host
from serai.schema.ids import PoolId
from serai.schema.job import Job
from serai.schema.volume import ExportKind, Pool, PoolCreate, PoolStatus

PATH_MAX = 1024
TARGET_ABILITY = "iscsi-target"
"""What a host must be able to do to export volumes over iSCSI (drivers/storage/probe.py names it)."""


async def create(tx: Transaction, requester: Requester, body: PoolCreate) -> Job:
    """Write it down and let its host open it."""
    path = _normal(body.spec.path)
    host = await tx.hosts.need(body.spec.host, "spec.host")
    need_online(host, "spec.host")
    if body.spec.export is ExportKind.ISCSI:
        _need_target(host)
    _refuse_shared_path(await tx.pools.on_host(host.name), path)
    spec = body.spec.model_copy(update={"path": path})
    pool = await add(tx, tx.pools, new_id(PoolId), body, spec, PoolStatus(state="creating"), f"on {host.name}")
    return await requester.submit(tx, CREATE_POOL, pool, PoolParams(pool=pool.id))


async def delete(tx: Transaction, requester: Requester, pool: Pool, *, force: bool = False) -> Job:
    """Forget an empty pool; by force also where its host is offline."""
    await refuse_while(tx, pool.id, "the pool is being deleted", "pool.delete")
    volumes = await tx.volumes.in_pool(pool.id)
    if volumes:
        names = ", ".join(volume.name for volume in volumes[:5]) + (" …" if len(volumes) > 5 else "")
        raise ConflictError(
            f"pool {pool.name} holds {len(volumes)} volumes: {names}",
            field="pool",
            value=pool.name,
            remedy="Delete them first, or the VMs that have them.",
        )
    hosts = [await tx.hosts.need(pool.spec.host)]
    away = await leave_out(tx, requester, pool, hosts, POOL_CLOSE, ClosePool(pool=pool.id), force=force)
    return await requester.submit(tx, DELETE_POOL, pool, DeletePoolParams(pool=pool.id, away=away))


def _normal(path: str) -> str:
    """The path in the one way to write it, so that two pools' can be compared: no doubled, trailing or `.` parts."""
    if len(path) > PATH_MAX or not path.isprintable():
        raise InvalidError(
            "too long, or with control characters, for a path",
            field="spec.path",
            value=shown(repr(path)),
            remedy=f"Give at most {PATH_MAX} printable characters.",
        )
    if path and (not path.startswith("/") or ".." in PurePosixPath(path).parts):
        raise InvalidError(
            "not an absolute path",
            field="spec.path",
            value=path,
            remedy="Give a path from / without `..`, or none: the agent's own folder is used then.",
        )
    # POSIX lets two slashes at the beginning mean something else; Linux does not.
    return str(PurePosixPath("/" + path.lstrip("/"))) if path else ""


def _refuse_shared_path(pools: list[Pool], path: str) -> None:
    for pool in pools:
        # A pool without a path of its own says in its status where the agent put it.
        if path and path in (pool.spec.path, pool.status.path):
            raise ConflictError(
                f"pool {pool.name} is in this folder already",
                field="spec.path",
                value=path,
                remedy="Choose another folder.",
            )


def _need_target(host: Host) -> None:
    lacking = None if host.status.facts is None else host.status.facts.missing(TARGET_ABILITY)
    if lacking is not None:
        raise UnsupportedError(
            f"host {host.name} cannot export volumes: {lacking.detail}",
            field="spec.export",
            value=ExportKind.ISCSI,
            remedy=lacking.remedy or "Install what is missing (serai doctor), or make a pool with export none.",
        )


ACTIONS: dict[str, Action] = {"pool.create": create, "pool.delete": delete}
