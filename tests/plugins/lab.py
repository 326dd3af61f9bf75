"""The standing lab: three hosts, 1 Gbit/s links, the tiny image built.

It is brought up once, since each test cleans up its own VMs. What a test kills it also brings back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator

import pytest
from tests.support.lab import Lab, standing

from serai.client import context as contexts
from serai.client.http import Client
from serai.lab.state import LabFolder

LOG_LINES = 40
"""Of each process of the lab, shown when a test fails on it."""


@pytest.fixture(scope="session")
def lab_name() -> Iterator[str]:
    """A lab of the tests' own, with its own folder and context file."""
    with standing() as name:
        yield name


@pytest.fixture
async def lab(lab_name: str) -> AsyncIterator[Lab]:
    """The lab for one test; its VMs are deleted at the end."""
    async with Client(contexts.resolve(lab_name)[1]) as client:
        ground = Lab(lab_name, client)
        try:
            yield ground
        finally:
            await ground.clean()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails on the lab shows what its processes said last."""
    report = yield
    name = getattr(item, "funcargs", {}).get("lab_name")
    if report.failed and name is not None:
        for log in sorted(LabFolder.of(name).logs.glob("*.log")):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            report.sections.append((f"the end of {log.name}", "\n".join(lines)))
    return report
