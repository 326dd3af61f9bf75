"""The fixture that runs each test on the fake and on the real hypervisor."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.hypervisor.benches import Bench, FakeBench, QemuBench


@pytest.fixture(params=["fake", "qemu"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "fake":
        fake = FakeBench()
        try:
            yield fake
        finally:
            await fake.close()
        return
    # Not pytest's folder: the path of a socket has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="serai-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        qemu = QemuBench(folder)
        try:
            yield qemu
        finally:
            await qemu.close()
