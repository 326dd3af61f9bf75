"""`host.clean`: a host that was away when something of it was deleted by force removes it once it is back.

The job is the memory of that: it waits as long as it takes, is shown like any other, and ends when it is cancelled or
when the host itself is deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from serai.controller.jobs.workflow import JobContext, NoState, Step, Workflow
from serai.controller.workflows.common import Office
from serai.schema.commands.image import IMAGE_DELETE, DeleteImage
from serai.schema.commands.pool import POOL_CLOSE, ClosePool
from serai.schema.commands.volume import VOLUME_DELETE, DeleteVolume
from serai.schema.errors import NotFoundError
from serai.schema.host import HostState
from serai.schema.ids import HostId, HostName, ImageId, PoolId, VolumeId
from serai.schema.job import Job
from serai.schema.resource import Frozen


class CleanParams(Frozen):
    """What the host removes: a volume with its pool, a pool, or an image; `what` says it in words."""

    host: HostId
    what: str
    pool: PoolId | None = None
    volume: VolumeId | None = None
    image: ImageId | None = None


Context = JobContext[CleanParams, NoState]


def _locks(job: Job, params: CleanParams) -> Sequence[str]:
    """One after the other, as they were asked for: a pool goes after its volumes. Nothing else waits for them."""
    return (f"clean/{params.host}",)


async def _clean(office: Office, ctx: Context) -> None:
    try:
        host = await _back(ctx)
    except NotFoundError:
        ctx.result = {"cleaned": None, "note": "the host was deleted"}
        return
    pool, volume, image = ctx.params.pool, ctx.params.volume, ctx.params.image
    try:
        if pool is not None and volume is not None:
            await ctx.send(VOLUME_DELETE, host, DeleteVolume(pool=pool, volume=volume), patience=float("inf"))
        elif pool is not None:
            await ctx.send(POOL_CLOSE, host, ClosePool(pool=pool), patience=float("inf"))
        elif image is not None:
            await ctx.send(IMAGE_DELETE, host, DeleteImage(image=image), patience=float("inf"))
    except NotFoundError:
        pass  # it has it no more
    ctx.result = {"cleaned": ctx.params.what}


async def _back(ctx: Context) -> HostName:
    """The host's name, once it is online. Raises NotFoundError if there is no such host any more."""
    cancelled = asyncio.ensure_future(ctx.cancelled.wait())
    try:
        while True:
            ctx.check_cancel()
            newest = ctx.store.bell.newest
            async with ctx.store.read() as view:
                host = await view.hosts.get(ctx.params.host)
            if host.status.state is HostState.ONLINE:
                ctx.waits_for("")
                return host.name
            ctx.waits_for(f"host {host.name} to come back")
            more = asyncio.ensure_future(ctx.store.bell.beyond(newest))
            try:
                await asyncio.wait({more, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                more.cancel()
    finally:
        cancelled.cancel()


CLEAN_HOST = Workflow("host.clean", CleanParams, NoState, (Step("clean", _clean, repeatable=True),), locks=_locks)
