"""`vm.restart`: a VM is stopped, and starts with all that its spec asks for."""

from __future__ import annotations

from serai.controller.jobs.workflow import JobContext, Step, Workflow
from serai.controller.workflows.start import choose_host, start_vm
from serai.controller.workflows.stop import StopParams, stop
from serai.schema.resource import Frozen


class RestartState(Frozen):
    stopped: str | None = None
    """How it was stopped; none if it was down."""


Context = JobContext[StopParams, RestartState]


async def _stop(ctx: Context) -> None:
    await stop(ctx)
    ctx.remember(stopped=(ctx.result or {}).get("reason"))


async def _start(ctx: Context) -> None:
    await start_vm(ctx)
    if ctx.state.stopped is not None:
        ctx.result = {**(ctx.result or {}), "stopped": ctx.state.stopped}


RESTART_VM = Workflow(
    "vm.restart",
    StopParams,
    RestartState,
    (
        Step("stop", _stop, repeatable=True, cancellable=False),
        Step("place", choose_host, repeatable=True),
        Step("start", _start, repeatable=True),
    ),
)
