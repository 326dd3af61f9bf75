"""Placement: the choice, the sentence, and the refusals."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.core.placement import Ties, choose_destination, choose_start, free, place
from serai.schema.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    SeraiError,
    UnavailableError,
    UnsupportedError,
)
from serai.schema.host import Ability, Host, HostFacts, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName, VmId
from serai.schema.vm import Vm, VmSpec, VmStatus

H1, H2, H3, H4 = HostName("h1"), HostName("h2"), HostName("h3"), HostName("h4")
GIB = 1 << 30
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MACHINES = ["pc-q35-9.2", "pc-q35-10.0", "microvm"]


def host(name: str, memory: int = 8, committed: int = 0, *, online: bool = True, cpus: int = 0, **spec: Any) -> Host:
    bridges = spec.pop("bridges", None)
    facts = HostFacts(
        cpus=4,
        memory=memory * GIB,
        accel="tcg",
        qemu_version="10.0",
        machine_types=spec.pop("machines", MACHINES),
        migration_capabilities=["events", "pause-before-switchover"],
        suppress_vmdesc=True,
    )
    return Host(
        name=HostName(name),
        id=HostId("aaaaaaaaaaaa"),
        generation=1,
        created=NOW,
        spec=HostSpec(memory_reserve=spec.pop("reserve", 0), **spec),
        status=HostStatus(
            state=HostState.ONLINE if online else HostState.OFFLINE,
            facts=facts,
            bridges=bridges,
            memory_committed=committed * GIB,
            cpus_committed=cpus,
        ),
    )


def vm(memory: int = 2, *, on: str | None = None, **spec: Any) -> Vm:
    return Vm(
        name="web1",
        id=VmId("bbbbbbbbbbbb"),
        generation=1,
        created=NOW,
        spec=VmSpec(memory=memory * GIB, **spec),
        status=VmStatus(host=None if on is None else HostName(on)),
    )


def test_the_least_committed_host_is_taken_and_it_says_so() -> None:
    choice = place(vm(), [host("h1", committed=4), host("h2", committed=1), host("h3", committed=2)])
    assert choice.host == "h2"
    assert choice.why == "fewest committed resources of 3 hosts: 5G of memory stays free"


def test_equal_hosts_are_taken_by_name_and_processors_count() -> None:
    assert place(vm(), [host("h2"), host("h1")]).host == "h1"
    assert place(vm(), [host("h1", cpus=4), host("h2")]).host == "h2"


def test_what_was_preferred_is_kept_if_it_will_do() -> None:
    hosts = [host("h1"), host("h2", committed=4)]
    assert place(vm(), hosts, prefer=H2).host == "h2"
    assert place(vm(6), hosts, prefer=H2).host == "h1"


def test_pins_reserves_and_unschedulable_hosts() -> None:
    assert place(vm(host="h2"), [host("h1"), host("h2", committed=4)]).why == "asked for by name"
    assert place(vm(), [host("h1", schedulable=False), host("h2", committed=5)]).host == "h2"
    assert place(vm(host="h1"), [host("h1", schedulable=False), host("h2")]).host == "h1"
    assert place(vm(), [host("h1", reserve=7 * GIB), host("h2", committed=5)]).host == "h2"
    assert place(vm(), [host("h1"), host("h2")], Ties({H2})).host == "h2"
    assert place(vm(), [host("h1"), host("h2")], Ties(set())).host == "h1"


@pytest.mark.parametrize(
    ("asked", "hosts", "kind", "field", "words"),
    [
        (vm(), [], UnavailableError, "spec.host", "no host yet"),
        (vm(9), [host("h1"), host("h2", 4)], InvalidError, "spec.memory", "h1 has the most, 8G"),
        (vm(), [host("h1", committed=7), host("h2", online=False)], CapacityError, "spec.memory", "h1 has 1G of mem"),
        (vm(), [host("h1", online=False)], UnavailableError, "spec.host", "h1 is offline"),
        (vm(), [host("h1", schedulable=False)], CapacityError, "spec.host", "h1 takes no new VMs"),
        (vm(host="h1"), [host("h1", online=False), host("h2")], UnavailableError, "spec.host", "h1 is offline"),
        (vm(host="h1"), [host("h1", committed=7), host("h2")], CapacityError, "spec.host", "h1 has 1G"),
    ],
)
def test_when_nothing_fits(asked: Vm, hosts: list[Host], kind: type[SeraiError], field: str, words: str) -> None:
    with pytest.raises(kind) as caught:
        place(asked, hosts)
    assert type(caught.value) is kind
    assert caught.value.info.field == field
    assert words in caught.value.info.message
    assert caught.value.info.remedy


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ("h1", ConflictError, "runs on h1 already"),
        ("h9", NotFoundError, "no host h9"),
        ("h3", UnavailableError, "offline"),
        ("h4", CapacityError, "1G of memory free"),
        ("h5", ConflictError, "local to h1"),
    ],
)
def test_destinations_that_cannot_be(wanted: str, kind: type[SeraiError], words: str) -> None:
    hosts = [host("h1"), host("h3", online=False), host("h4", committed=7), host("h5")]
    with pytest.raises(kind, match=words) as caught:
        choose_destination(vm(on="h1"), hosts, HostName(wanted), Ties({H1, H4}))
    assert (caught.value.info.field, caught.value.info.value) == ("to", wanted)


def test_destinations() -> None:
    hosts = [host("h1"), host("h2", committed=4), host("h3")]
    assert choose_destination(vm(on="h1"), hosts, None).host == "h3"
    assert choose_destination(vm(on="h1"), hosts, H2).why == "asked for by name"
    assert choose_destination(vm(on="h1", host="h1"), hosts, H2).host == "h2"
    with pytest.raises(CapacityError, match="h2 is not h1"):
        choose_destination(vm(on="h1", host="h1"), hosts, None)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 64), st.booleans()), max_size=8), st.integers(1, 64))
def test_memory_is_never_promised_twice(sizes: list[tuple[int, int, bool]], memory: int) -> None:
    hosts = [host(f"h{n}", size, min(used, size), online=up) for n, (size, used, up) in enumerate(sizes)]
    asked = vm(memory)
    try:
        choice = place(asked, hosts)
    except SeraiError:
        assert not any(one.status.state is HostState.ONLINE and free(one) >= asked.spec.memory for one in hosts)
    else:
        chosen = next(one for one in hosts if one.name == choice.host)
        assert chosen.status.state is HostState.ONLINE
        assert free(chosen) >= asked.spec.memory
        assert place(asked, list(reversed(hosts))) == choice


def test_a_host_without_the_machine_is_out() -> None:
    old, new = host("h1", machines=["pc-q35-9.2"]), host("h2", committed=4)
    assert place(vm(), [old, new]).host == "h1"
    assert place(vm(machine="microvm"), [old, new]).host == "h2"
    choice = place(vm(machine_type="pc-q35-10.0"), [old, new])
    assert (choice.host, choice.others) == ("h2", {"h1": "has no pc-q35-10.0 machine in its QEMU"})
    with pytest.raises(UnsupportedError, match="h1 has no microvm machine in its QEMU") as caught:
        place(vm(machine="microvm"), [old, host("h3", machines=[])])
    assert (caught.value.info.field, caught.value.info.value) == ("spec.machine", "microvm")
    assert caught.value.info.remedy


def other(found: Host, **facts: Any) -> Host:
    """The host with other facts."""
    assert found.status.facts is not None
    changed = found.status.facts.model_copy(update=facts)
    return found.model_copy(update={"status": found.status.model_copy(update={"facts": changed})})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"qemu_version": "7.2"}, "7.2 emulates less than 10.0"),
        ({"suppress_vmdesc": False}, "the destination's QEMU 10.0 has no suppress-vmdesc"),
        ({"migration_capabilities": ["events"]}, "has no pause-before-switchover"),
        ({"accel": "kvm"}, "runs with tcg, the destination has kvm"),
    ],
)
def test_a_running_vm_does_not_go_where_a_move_is_not_safe(facts: dict[str, Any], words: str) -> None:
    moving = vm(on="h1", machine_type="pc-q35-10.0")
    hosts = [host("h1"), other(host("h2"), **facts), host("h3", committed=4)]
    choice = choose_destination(moving, hosts, None)
    assert choice.host == "h3"
    assert words in choice.others[H2]
    with pytest.raises(ConflictError, match=words) as caught:
        choose_destination(moving, hosts, H2)
    assert (caught.value.info.field, caught.value.info.value) == ("to", "h2")
    # Stopped, it may start there.
    assert place(moving, hosts[1:2]).host == "h2"


@pytest.mark.parametrize("required", [True, False])
def test_a_host_whose_qemu_has_no_sandbox_is_out_unless_that_is_allowed(required: bool) -> None:
    lack = Ability(name="qemu-sandbox", found=False, detail="it refuses", required=required)
    open_host = other(host("h1"), abilities=[lack])
    choice = place(vm(), [open_host, host("h2", committed=4)])
    assert choice.host == ("h2" if required else "h1")
    if required:
        assert choice.others == {"h1": "starts no VMs: it refuses"}
        with pytest.raises(UnsupportedError, match="starts no VMs"):
            place(vm(), [open_host])


def test_a_running_vm_goes_where_its_machine_is_the_same() -> None:
    moving = vm(on="h1", machine="microvm", machine_type="microvm")
    old = other(host("h2"), qemu_version="7.2")
    hosts = [host("h1"), old, host("h3", committed=4), host("h4", machines=["pc-q35-10.0"])]
    assert choose_destination(moving, hosts, None).host == "h3"
    for wanted, words in (("h2", "from 10.0 to 7.2"), ("h4", "has no microvm machine")):
        with pytest.raises(ConflictError, match=words) as caught:
            choose_destination(moving, hosts, HostName(wanted))
        assert (caught.value.info.field, caught.value.info.value) == ("to", wanted)


def test_a_vm_starts_where_it_was_or_elsewhere_and_says_why() -> None:
    hosts = [host("h1"), host("h2", committed=7), host("h3", committed=1)]
    assert choose_start(vm(), hosts, None, H3).why == "it was there before"
    assert choose_start(vm(), hosts, None, None).host == "h1"
    choice = choose_start(vm(), hosts, None, H2)
    assert choice.host == "h1"
    assert choice.why.startswith("h2, where it was, has 1G of memory free, and 2G is needed; fewest committed")
    assert choose_start(vm(host="h1"), hosts, H3, H1).host == "h3"
    assert choose_start(vm(), [host("h1"), host("h2", schedulable=False)], H2, H1).why == "asked for by name"
    for wanted, kind, words, ties in (
        ("h9", NotFoundError, "no host h9", Ties()),
        ("h2", CapacityError, "1G of memory free", Ties()),
        ("h3", ConflictError, "local to h1", Ties({H1})),
    ):
        with pytest.raises(kind, match=words) as caught:
            choose_start(vm(), hosts, HostName(wanted), H1, ties)
        assert (caught.value.info.field, caught.value.info.value) == ("host", wanted)


@pytest.mark.parametrize("wanted", [None, H1, H2])
@pytest.mark.parametrize("hosts", [[host("h1", online=False), host("h2")], [host("h1"), host("h2")]])
def test_a_vm_starts_nowhere_while_a_silent_host_may_run_it(wanted: HostName | None, hosts: list[Host]) -> None:
    home = "h1" if hosts[0].status.state is HostState.OFFLINE else "h9"
    with pytest.raises(UnavailableError, match=f"was last on host {home}") as caught:
        choose_start(vm(), hosts, wanted, HostName(home))
    assert (caught.value.info.field, caught.value.info.value) == ("host", home)


def test_more_processors_than_a_host_has_are_remarked_on() -> None:
    remark = "; its 8 CPUs share the 4 that h1 has"
    assert place(vm(cpus=8), [host("h1")]).why == f"the only host{remark}"
    assert place(vm(cpus=8, host="h1"), [host("h1")]).why == f"asked for by name{remark}"
    assert place(vm(cpus=8), [host("h1")], prefer=H1).why == f"it was there before{remark}"
    assert choose_destination(vm(cpus=8, on="h2"), [host("h1"), host("h2")], H1).why == f"asked for by name{remark}"
    assert place(vm(cpus=4), [host("h1")]).why == "the only host"


def test_a_host_without_the_bridge_of_a_network_is_out() -> None:
    ties = Ties(bridges={"br-lan": "lan", "br-n2": "n2"})
    with_it = host("h2", committed=4, bridges=["br-lan", "br-n2"])
    choice = place(vm(), [host("h1", bridges=["br-lan"]), with_it], ties)
    assert (choice.host, choice.others) == ("h2", {"h1": "has no bridge br-n2 (network n2)"})
    assert place(vm(), [host("h1"), with_it], ties).host == "h1"  # it has not said which it has
    without = [host("h1", bridges=["br-lan"]), host("h3", bridges=[])]
    with pytest.raises(
        ConflictError, match=r"h1 has no bridge br-n2 \(network n2\); h3 has no bridge br-lan"
    ) as caught:
        place(vm(), without, ties)
    assert (caught.value.info.field, caught.value.info.value) == ("spec.vnics", "n2")
    assert "--bridge br-n2" in (caught.value.info.remedy or "")
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        choose_destination(vm(on="h2"), [*without, with_it], H1, ties)
    with pytest.raises(ConflictError, match="h1 has no bridge br-n2"):
        choose_start(vm(), [*without, with_it], H1, H2, ties)
    assert choose_start(vm(), [*without, with_it], None, H1, ties).why.startswith("h1, where it was, has no bridge")
