"""A host with a real tgtd, which is gone at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.iscsi import VOLUME, Host

from serai.drivers.storage.iscsi import TgtExporter


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        leftover = made.agent()
        await leftover.start()
        await leftover.stop()
        assert await made.pid() is None


@pytest.fixture
async def exporter(host: Host) -> TgtExporter:
    agent = host.agent()
    await agent.start()
    await agent.export(VOLUME, host.volume)
    return agent
