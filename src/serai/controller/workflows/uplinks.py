"""`host.take` and `host.confirm`: a host's uplink becomes part of a bridge, on trial until that is confirmed."""

from __future__ import annotations

from serai.controller.hosts import observed
from serai.controller.jobs.workflow import JobContext, NoState, Step, Workflow
from serai.schema.commands.uplink import UPLINK_CONFIRM, UPLINK_TAKE, ConfirmUplink, TakeUplink
from serai.schema.ids import HostId
from serai.schema.resource import Frozen


class HostParams(Frozen):
    host: HostId


class TakeParams(HostParams):
    uplink: str
    bridge: str
    confirm_within: float
    """Seconds after which the bridge goes again unless it is confirmed."""


async def _take(ctx: JobContext[TakeParams, NoState]) -> None:
    asked = ctx.params
    async with ctx.store.read() as view:
        host = await view.hosts.get(asked.host)
    body = TakeUplink(uplink=asked.uplink, bridge=asked.bridge, confirm_within=asked.confirm_within)
    taken = await ctx.send(UPLINK_TAKE, host.name, body)
    # Known at once: its next report may be seconds away, and says so if it is undone.
    async with ctx.store.transaction() as tx:
        host = await tx.hosts.get(host.id)
        bridges = host.status.bridges
        if bridges is not None and asked.bridge not in bridges:
            await observed.write_bridges(tx, host, sorted([*bridges, asked.bridge]))
    ctx.result = {"bridge": asked.bridge, "confirm_before": taken.deadline.isoformat()}


async def _confirm(ctx: JobContext[HostParams, NoState]) -> None:
    async with ctx.store.read() as view:
        host = await view.hosts.get(ctx.params.host)
    await ctx.send(UPLINK_CONFIRM, host.name, ConfirmUplink(token=""))
    ctx.result = {"confirmed": True}


TAKE_UPLINK = Workflow("host.take", TakeParams, NoState, (Step("take", _take, repeatable=True),))
CONFIRM_UPLINK = Workflow("host.confirm", HostParams, NoState, (Step("confirm", _confirm, repeatable=True),))
