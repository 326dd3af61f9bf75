"""Pools on a journal of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from serai.drivers.storage.base import Exporter, PoolDriver
from serai.drivers.storage.directory import DirectoryPool
from serai.host.journal import Journal
from serai.host.storage.pools import HostPools
from serai.host.store import HostStore
from serai.lib.paths import HostPaths
from serai.schema.commands.pool import OpenPool


def at_path(pool: OpenPool) -> PoolDriver:
    return DirectoryPool(Path(pool.path), pool=pool.pool)


class MakePools(Protocol):
    """A host's pools; asked again, as an agent that was restarted sees them."""

    def __call__(
        self, driver: Callable[[OpenPool], PoolDriver] = ..., *, exporter: Exporter | None = ...
    ) -> HostPools: ...


@pytest.fixture
def make_pools(tmp_path: Path) -> Iterator[MakePools]:
    """Their journal is in `state`, below the test's folder."""
    paths = HostPaths(state=tmp_path / "state", run=tmp_path / "run")
    journal = Journal.open(paths.journal)

    def make(driver: Callable[[OpenPool], PoolDriver] = at_path, *, exporter: Exporter | None = None) -> HostPools:
        return HostPools(store=HostStore(journal), paths=paths, exporter=exporter, open_driver=driver)

    yield make
    journal.close()
