"""A destination whose agent dies while it prepares for a VM."""

from __future__ import annotations

import asyncio

import pytest

from serai.drivers.hypervisor.fake import FakeMachine
from serai.schema.errors import UnavailableError
from serai.schema.lease import Claim

from .conftest import VM, Ground
from .test_moves import Trip


@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "still silent"])
async def test_an_agent_that_is_killed_as_it_prepares_says_so(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, adopted: bool
) -> None:
    """Its QEMU is there, half made: that is no VM that is on the host already."""
    trip = Trip(ground, await ground.host("h1"), await ground.host("h2"))
    await ground.run_vm("h1")
    reached = asyncio.Event()

    async def waits(self: FakeMachine, *_: object) -> int:
        reached.set()
        await asyncio.Event().wait()
        return 0

    async def silent(*_: object) -> None:
        raise UnavailableError("QMP does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(FakeMachine, "prepare_incoming", waits)
        first = asyncio.ensure_future(trip.prepare())
        await asyncio.wait_for(reached.wait(), 10)
        await trip.destination.kill()
        await asyncio.gather(first, return_exceptions=True)  # nobody hears a dead agent: it is asked again
    hypervisor, adopt = trip.destination.hypervisor, trip.destination.hypervisor.adopt
    if not adopted:
        monkeypatch.setattr(hypervisor, "adopt", silent)
    await trip.destination.start()
    if adopted:  # nobody need ask for it
        await ground.until(lambda: not trip.destination.processes())
        assert trip.destination.records.claim(VM, 2) is Claim.ABANDONED
    trip.begin()
    await ground.until(lambda: trip.reason != "")
    assert "h2's agent was restarted while it prepared the move" in trip.reason
    assert "(to: h2). Move it again: serai vm migrate web1 --to h2." in trip.reason
    monkeypatch.setattr(hypervisor, "adopt", adopt)
    await trip.over()
    trip.check()
    again = Trip(ground, trip.source, trip.destination, epoch=3, offer="again")
    again.begin()
    await again.over()
    assert again.committed
