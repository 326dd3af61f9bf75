"""The table of handlers."""

from __future__ import annotations

from tests.unit.host.ground import Host

from serai.schema.commands import BY_NAME


async def test_every_command_has_a_handler(h1: Host) -> None:
    assert h1.executor.table.keys() == BY_NAME.keys()
