"""Ports of moves: none comes again for the same VM while its claims are kept."""

from __future__ import annotations

from tests.unit.host.ground import Ground, Host
from tests.unit.host.trip import Trip

from serai.host.migration.ports import FIRST, LAST, MigrationPorts
from serai.schema.commands.migration import MIGRATION_ABANDON, AbandonMigration
from serai.schema.ids import VmId


def test_they_go_round_and_leave_out_what_was_used() -> None:
    ports = MigrationPorts()
    assert list(ports._ranges(())) == [(FIRST, LAST)]
    assert list(ports._ranges({FIRST, FIRST + 5})) == [(FIRST + 1, FIRST + 4), (FIRST + 6, LAST)]
    ports._next = LAST
    assert list(ports._ranges({FIRST})) == [(LAST, LAST), (FIRST + 1, LAST - 1)]
    assert list(ports._ranges(range(FIRST, LAST + 1))) == []


async def test_an_old_offers_port_is_not_the_next_ones(ground: Ground) -> None:
    """Nor after the agent was started again, which forgets how far round it was."""
    h1, h2 = await ground.host("h1"), await ground.host("h2")
    await ground.run_vm("h1")
    used = []
    for epoch in range(2, 6):
        prepared = await Trip(ground, h1, h2, epoch=epoch, offer=f"offer{epoch}").prepare()
        used.append(prepared.port)
        await _turn_down(ground, h2, epoch)
        await h2.restart()
    assert len(set(used)) == len(used)


async def _turn_down(ground: Ground, host: Host, epoch: int) -> None:
    vm = "0123456789ab"
    body = AbandonMigration(vm=VmId(vm), epoch=epoch, offer_id=f"offer{epoch}", reason="given up")
    await ground.ask(host.name, MIGRATION_ABANDON, body)
    await ground.until(lambda: not host.processes())
    ground.world.listening.clear()
