"""A source whose QEMU has sent all, and a destination that got nothing of it: `completed` there proves nothing."""

from __future__ import annotations

import pytest
from tests.unit.host.ground import VM, Ground
from tests.unit.host.trip import Trip

from serai.drivers.hypervisor.base import RunState
from serai.drivers.hypervisor.fake import FakeProcess
from serai.schema.lease import Claim


async def test_what_was_sent_and_never_arrived_leaves_the_vm_where_it_was(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream was refused over there, but all of it fitted into the buffers on the way."""
    trip = Trip(ground, await ground.host("h1"), await ground.host("h2"))
    await ground.run_vm("h1")
    monkeypatch.setattr(FakeProcess, "_receive", lambda *_: None)
    trip.begin()
    await ground.until(lambda: trip.source.process().stats.status == "completed", ticking=False)
    await ground.turn()
    # It stands still, as long as nothing is decided.
    assert trip.source.process().state is RunState.POSTMIGRATE
    assert trip.destination.store.claim(VM, 2) is Claim.OFFERED
    await trip.over()
    trip.check()
    assert trip.committed is False
    assert trip.source.running
    assert "the last state did not arrive" in trip.reason
