"""Host agents on one in-process bus, with machines in memory; see ground.py."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.unit.host.ground import Ground, Host


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    """No host yet."""
    found = Ground(tmp_path)
    await found.open()
    yield found
    await found.close()


@pytest.fixture
async def h1(ground: Ground) -> Host:
    """One host on it."""
    return await ground.host("h1")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Killed agents complain; that is no news here."""
    logging.getLogger("serai").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("serai").setLevel(logging.NOTSET)
