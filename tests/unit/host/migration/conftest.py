"""A VM that is about to move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.unit.host.ground import Ground
from tests.unit.host.trip import Trip


@pytest.fixture
async def trip(ground: Ground) -> AsyncIterator[Trip]:
    """A VM that runs on h1 and is to move to h2."""
    found = Trip(ground, await ground.host("h1"), await ground.host("h2"))
    await ground.run_vm("h1")
    yield found
    if found.task is not None and not found.task.done():
        found.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await found.task
