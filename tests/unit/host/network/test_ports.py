"""The ports of VNICs: each is tried, and a bridge that is missing is named with its host."""

from __future__ import annotations

import pytest

from serai.drivers.network.fake import FakeNetwork
from serai.host.network.ports import VnicPorts
from serai.schema.errors import NotFoundError
from serai.schema.launch import VnicAttachment

VNICS = [
    VnicAttachment(index=index, mac=f"52:54:00:00:00:0{index}", bridge="br-lan", tap=f"tap{index}")
    for index in range(3)
]


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork()


@pytest.fixture
def ports(network: FakeNetwork) -> VnicPorts:
    return VnicPorts("h1", network)


async def test_they_are_opened_announced_and_closed(ports: VnicPorts, network: FakeNetwork) -> None:
    for vnic in VNICS:
        await ports.create(vnic, open_port=False)
    await ports.open(VNICS)
    assert network.ports == {"tap0": True, "tap1": True, "tap2": True}
    await ports.announce(VNICS)
    assert network.announced == [vnic.mac for vnic in VNICS]
    await ports.close(VNICS)
    assert not any(network.ports.values())


async def test_one_that_is_gone_keeps_no_other_from_its_turn(
    ports: VnicPorts, network: FakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    for vnic in VNICS[1:]:
        await ports.create(vnic, open_port=False)
    with pytest.raises(NotFoundError, match="no such link"):
        await ports.open(VNICS)
    assert network.ports == {"tap1": True, "tap2": True}
    with caplog.at_level("WARNING", "serai"):
        await ports.announce(VNICS)
    assert network.announced == [vnic.mac for vnic in VNICS[1:]]
    assert VNICS[0].mac in caplog.text


async def test_a_missing_bridge_is_named_with_the_host(ports: VnicPorts, network: FakeNetwork) -> None:
    network.bridges.clear()
    with pytest.raises(NotFoundError, match="host h1 has no bridge br-lan") as caught:
        await ports.create(VNICS[0], open_port=True)
    assert "--host h1 --bridge br-lan" in (caught.value.info.remedy or "")
