"""`pool.create` and `pool.delete`."""

from __future__ import annotations

from serai.controller.jobs.workflow import JobContext, NoState, Step, Workflow
from serai.controller.services import resources
from serai.controller.workflows.common import AwayParams, say_what_is_left
from serai.schema.commands.pool import POOL_CLOSE, POOL_OPEN, ClosePool, OpenPool
from serai.schema.ids import PoolId
from serai.schema.resource import Frozen


class PoolParams(Frozen):
    pool: PoolId


class DeletePoolParams(PoolParams, AwayParams):
    pass


async def _open(ctx: JobContext[PoolParams, NoState]) -> None:
    async with ctx.store.read() as view:
        pool = await view.pools.get(ctx.params.pool)
    body = OpenPool(pool=pool.id, driver=pool.spec.driver, path=pool.spec.path, export=pool.spec.export)
    status = await ctx.send(POOL_OPEN, pool.spec.host, body)
    async with ctx.store.transaction() as tx:
        await resources.set_status(tx, tx.pools, pool.id, **dict(status))
    ctx.result = status.model_dump(mode="json")


async def _close(ctx: JobContext[PoolParams, NoState]) -> None:
    async with ctx.store.read() as view:
        pool = await view.pools.get(ctx.params.pool)
    await ctx.send(POOL_CLOSE, pool.spec.host, ClosePool(pool=pool.id))
    async with ctx.store.transaction() as tx:
        await resources.forget(tx, tx.pools, pool.id)


async def _delete(ctx: JobContext[DeletePoolParams, NoState]) -> None:
    if ctx.params.away:
        async with ctx.store.transaction() as tx:
            await resources.forget(tx, tx.pools, ctx.params.pool)
    else:
        await _close(ctx)
    say_what_is_left(ctx)


CREATE_POOL = Workflow("pool.create", PoolParams, NoState, (Step("open", _open, undo=_close, repeatable=True),))
DELETE_POOL = Workflow("pool.delete", DeletePoolParams, NoState, (Step("close", _delete, repeatable=True),))
