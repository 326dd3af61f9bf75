"""Pools."""

from __future__ import annotations

from pathlib import PurePosixPath

from fastapi import Response

from serai.controller import capacity
from serai.controller.api.absent import away, clean_later
from serai.controller.api.call import Api, Call, Handler, accepted
from serai.controller.api.checks import need_online, refuse_while
from serai.controller.api.invalid import shown
from serai.controller.api.references import respond, respond_models
from serai.controller.workflows.resources import CREATE_POOL, DELETE_POOL, DeletePoolParams, PoolParams
from serai.lib.ids import new_id
from serai.schema.commands.pool import POOL_CLOSE, ClosePool
from serai.schema.errors import ConflictError, InvalidError, UnsupportedError
from serai.schema.host import Host
from serai.schema.ids import PoolId
from serai.schema.volume import ExportKind, Pool, PoolCreate, PoolStatus

PATH_MAX = 1024
TARGET_ABILITY = "iscsi-target"
"""What a host must be able to do to export volumes over iSCSI (drivers/storage/probe.py names it)."""


async def list_(api: Api, call: Call) -> Response:
    """With what is committed in each."""
    async with api.store.read() as view:
        found, following = await view.pools.models(call.limit, call.cursor)
        return await respond_models(view, await capacity.with_volumes(view, found), following)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await respond(view, (await capacity.with_volumes(view, [await view.pools.find(call.name)]))[0])


async def create(api: Api, call: Call) -> Response:
    """Write it down and let its host open it."""
    body = call.need(PoolCreate)
    path = _check_path(body.spec.path)
    async with api.store.transaction() as tx:
        host = await tx.hosts.need(body.spec.host, "spec.host")
        need_online(host, "spec.host")
        if body.spec.export is ExportKind.ISCSI:
            _need_target(host)
        await _refuse_shared_path(await tx.pools.on_host(host.name), path)
        pool = Pool(
            name=body.name,
            id=new_id(PoolId),
            generation=1,
            labels=body.labels,
            description=body.description,
            created=tx.now,
            spec=body.spec.model_copy(update={"path": path}),
            status=PoolStatus(state="creating"),
        )
        await tx.pools.insert(pool)
        await tx.emit("pool.created", f"pool/{pool.name}", pool.id, f"on {host.name}")
        return accepted(await call.submit(api, tx, CREATE_POOL, pool, PoolParams(pool=pool.id)))


async def delete(api: Api, call: Call) -> Response:
    """Forget an empty pool; by force also where its host is offline."""
    async with api.store.transaction() as tx:
        pool = await tx.pools.find(call.name)
        await refuse_while(tx, pool.id, "the pool is being deleted", "pool.delete", remedy="Wait for that job's end.")
        volumes = await tx.volumes.in_pool(pool.id)
        if volumes:
            names = ", ".join(volume.name for volume in volumes[:5]) + (" …" if len(volumes) > 5 else "")
            raise ConflictError(
                f"pool {pool.name} holds {len(volumes)} volumes: {names}",
                field="pool",
                value=pool.name,
                remedy="Delete them first, or the VMs that have them.",
            )
        host = await tx.hosts.need(pool.spec.host)
        absent = away(call, [host])
        if absent:
            await clean_later(call, tx, host, POOL_CLOSE, ClosePool(pool=pool.id))
        params = DeletePoolParams(pool=pool.id, away=[one.name for one in absent])
        return accepted(await call.submit(api, tx, DELETE_POOL, pool, params))


def _check_path(path: str) -> str:
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


async def _refuse_shared_path(pools: list[Pool], path: str) -> None:
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
    abilities = host.status.facts.abilities if host.status.facts is not None else []
    lacking = next((one for one in abilities if one.name == TARGET_ABILITY and not one.found), None)
    if lacking is not None:
        raise UnsupportedError(
            f"host {host.name} cannot export volumes: {lacking.detail}",
            field="spec.export",
            value=ExportKind.ISCSI,
            remedy=lacking.remedy or "Install what is missing (serai doctor), or make a pool with export none.",
        )


HANDLERS: dict[str, Handler] = {
    "pool.list": list_,
    "pool.show": show,
    "pool.create": create,
    "pool.delete": delete,
}
