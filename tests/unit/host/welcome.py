"""What the controller answers to a hello of a host on which something is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.unit.host.ground import VM, Ground, Host

from serai.schema.lease import Claim
from serai.schema.reports import Introduction, LeaseEnd, Welcome

Answer = Callable[[Introduction], Welcome | None]


def over(ground: Ground, *epochs: int, strays: bool = False) -> Answer:
    """The first hello is answered with what is over, and each one until nothing of that is claimed any more."""

    def answer(said: Introduction) -> Welcome:
        live = {row.epoch for row in said.leases if row.claim in (Claim.HELD, Claim.COMMITTED, Claim.OFFERED)}
        ends = [LeaseEnd(vm=VM, epoch=epoch) for epoch in epochs if epoch in live]
        new = strays and len(ground.hellos) == 1
        return ground.welcomed(give_up=ends, end_strays=new)

    return answer


async def restarted(ground: Ground, host: Host, restart: Callable[[], Awaitable[None]]) -> None:
    """A new agent, which has said hello until it was welcome."""
    ground.hellos.clear()
    await restart()
    await ground.until(lambda: host.agent._welcomed)
