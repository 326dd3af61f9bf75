"""The plan of a lab."""

import pytest

from serai.lab.topology import HOST_BRIDGE, netns_pattern, plan
from serai.schema.errors import InvalidError


def test_hosts_have_two_links_each_and_their_addresses() -> None:
    wanted = plan("lab", 3, 10**9)
    assert wanted.hosts == ("h1", "h2", "h3")
    assert str(wanted.address("h2")) == "10.77.0.12"
    assert str(wanted.address("h2", "san")) == "10.78.0.12"
    assert str(wanted.address("ctl")) == "10.77.0.2"
    assert str(wanted.address("probe")) == "10.77.0.3"
    (lan,) = [wire for wire in wanted.wires if (wire.node, wire.link) == ("h1", "eth0")]
    (san,) = [wire for wire in wanted.wires if (wire.node, wire.link) == ("h1", "eth1")]
    assert (lan.segment, lan.bridge, lan.mtu, lan.rate) == ("lan", HOST_BRIDGE, 1500, 10**9)
    assert (san.segment, san.bridge, san.mtu, san.rate) == ("san", None, 9000, 10**9)


def test_only_hosts_are_shaped() -> None:
    assert {wire.node for wire in plan("lab", 2, 10**9).wires if wire.rate is None} == {"ctl", "probe"}


def test_the_probe_is_on_the_lan_alone() -> None:
    with pytest.raises(KeyError):
        plan("lab", 1).address("probe", "san")


@pytest.mark.parametrize("hosts", [1, 3, 64])
def test_nothing_has_the_same_name_mac_or_address_twice(hosts: int) -> None:
    wanted = plan("lab", hosts)
    for values in (
        [wire.mac for wire in wanted.wires] + [segment.mac for segment in wanted.segments],
        [wire.address for wire in wanted.wires],
        [wire.port for wire in wanted.wires],
        [(wire.node, wire.link) for wire in wanted.wires],
        [wanted.netns(node) for node in wanted.nodes],
    ):
        assert len(values) == len(set(values))
    assert all(len(wire.port) <= 15 for wire in wanted.wires)


def test_a_lab_knows_its_own_namespaces_from_those_of_a_longer_name() -> None:
    own = netns_pattern("a")
    assert all(own.fullmatch(plan("a", 2).netns(node)) for node in plan("a", 2).nodes)
    assert not any(own.fullmatch(plan("a-h1", 2).netns(node)) for node in plan("a-h1", 2).nodes)


@pytest.mark.parametrize(
    ("name", "hosts", "rate", "field"),
    [("Lab", 3, None, "name"), ("../x", 3, None, "name"), ("", 3, None, "name"), ("a" * 33, 3, None, "name"),
     ("lab", 0, None, "hosts"), ("lab", 65, None, "hosts"), ("lab", 3, 1000, "link_rate")],
)  # fmt: skip
def test_refusals_name_the_field_and_a_remedy(name: str, hosts: int, rate: int | None, field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        plan(name, hosts, rate)
    assert caught.value.info.field == field
    assert caught.value.info.remedy
