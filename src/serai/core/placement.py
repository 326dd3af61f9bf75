"""Placement: filter the hosts, weigh those that are left, and say why.

A host is out if it is offline, takes no new VMs, is not among those that the VM's disks or its spec allow, has no
bridge for one of its networks, has a QEMU without the VM's machine, or has too little memory left: `memory -
memory_reserve - memory_committed`. Memory is never promised twice; processors may be, so they only weigh. Of the rest
the one with the smallest share of its memory and processors committed is taken (after the VM is counted in), by name
where they are equal, so that the same question always gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from serai.core.launch import check_machine, pin_machine
from serai.core.migration import agreed_capabilities
from serai.schema.errors import (
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    SeraiError,
    UnavailableError,
    UnsupportedError,
)
from serai.schema.host import SANDBOX_ABILITY, Host, HostFacts, HostState
from serai.schema.ids import HostName
from serai.schema.units import format_size
from serai.schema.vm import Vm, VmSpec

CPU_WEIGHT = 0.5
"""Memory decides first: running out of it ends VMs, running out of processors slows them."""


@dataclass(frozen=True)
class Ties:
    """What ties a VM to some hosts. `local`: the only ones that hold disks which are not exported (none: any will do).
    `bridges`: what the host must have, each with the name of a network that is on it."""

    local: Collection[HostName] = ()
    bridges: Mapping[str, str] = field(default_factory=dict)


FREE = Ties()


@dataclass(frozen=True)
class Choice:
    """A host, and a sentence for people. `others` says of each other host why not."""

    host: HostName
    why: str
    others: Mapping[HostName, str] = field(default_factory=dict)


def usable(host: Host) -> int:
    """Bytes of memory that VMs may have on this host in all; 0 if it never said what it has."""
    facts = host.status.facts
    return 0 if facts is None else max(facts.memory - host.spec.memory_reserve, 0)


def free(host: Host) -> int:
    """Bytes of memory that are not promised to any VM yet."""
    return usable(host) - host.status.memory_committed


def _online(host: Host) -> bool:
    return host.status.state is HostState.ONLINE and host.status.facts is not None


def objection(spec: VmSpec, host: Host, ties: Ties) -> str | None:
    """Why this host will not do; None if it will."""
    if not _online(host) or host.status.facts is None:
        return "is offline"
    if spec.host is not None and spec.host != host.name:
        return f"is not {spec.host}, which the VM asks for"
    if not host.spec.schedulable and spec.host != host.name:
        return "takes no new VMs"
    if ties.local and host.name not in ties.local:
        return f"cannot reach the VM's disks, which are local to {_list(ties.local)}"
    return _lack_of_bridge(ties, host) or _lack_of_machine(spec, host.status.facts) or _lack_of_memory(spec, host)


def _lack_of_bridge(ties: Ties, host: Host) -> str | None:
    """Which bridge is not there; a host that has not said which it has is not judged."""
    for bridge, network in ties.bridges.items():
        if not _may_have(host, bridge):
            return f"has no bridge {bridge} (network {network})"
    return None


def _lack_of_memory(spec: VmSpec, host: Host) -> str | None:
    if free(host) >= spec.memory:
        return None
    return f"has {format_size(max(free(host), 0))} of memory free, and {format_size(spec.memory)} is needed"


def _lack_of_machine(spec: VmSpec, facts: HostFacts) -> str | None:
    """Why this host's QEMU cannot be the VM's machine: it has no sandbox, not the pinned type, none of the kind."""
    sandbox = facts.missing(SANDBOX_ABILITY)
    if sandbox is not None and sandbox.required:
        return f"starts no VMs: {sandbox.detail}"
    if spec.machine_type is not None:
        return None if spec.machine_type in facts.machine_types else f"has no {spec.machine_type} machine in its QEMU"
    try:
        pin_machine(spec.machine, facts)
    except UnsupportedError:
        return f"has no {spec.machine} machine in its QEMU"
    return None


def _unlike(vm: Vm, source: Host | None, host: Host) -> str | None:
    """Why a running VM cannot pass between two machines that could each start it."""
    if vm.spec.machine_type is None or source is None or source.status.facts is None or host.status.facts is None:
        return None
    try:
        check_machine(vm.spec.machine_type, host.status.facts, source.status.facts, runs_on=vm.status.accel)
        agreed_capabilities(source.status.facts, host.status.facts)
    except ConflictError as error:
        return f"differs too much: {error.info.message}"
    return None


def place(vm: Vm | VmSpec, hosts: Iterable[Host], ties: Ties = FREE, *, prefer: HostName | None = None) -> Choice:
    """Choose a host for a VM that starts. `hosts` come with what other VMs have been promised on them.

    `prefer` is taken if it will do. Raises CapacityError, UnavailableError, ConflictError, with the reason for each
    host.
    """
    spec = vm.spec if isinstance(vm, Vm) else vm
    candidates = sorted(hosts, key=lambda host: host.name)
    against = {host.name: objection(spec, host, ties) for host in candidates}
    fit = [host for host in candidates if against[host.name] is None]
    others = {name: reason for name, reason in against.items() if reason is not None}
    if not fit:
        raise _nothing_fits(spec, candidates, others, ties)
    return _choose(spec, fit, others, prefer)


def choose_start(
    vm: Vm,
    hosts: Iterable[Host],
    wanted: HostName | None,
    home: HostName | None,
    ties: Ties = FREE,
) -> Choice:
    """Choose where a VM that is down starts. `home` holds its lease (none: nobody has it yet).

    It starts there again if that will do; else elsewhere, and the sentence says why. Naming a host outweighs
    `spec.host` and `schedulable`. A home that is silent lets nothing go: then it starts nowhere. Raises NotFoundError,
    ConflictError, UnavailableError, CapacityError, InvalidError, UnsupportedError.
    """
    candidates = sorted(hosts, key=lambda host: host.name)
    if wanted is not None:
        _find(candidates, wanted, "host")
    if home is not None and not any(host.name == home and _online(host) for host in candidates):
        raise UnavailableError(
            f"VM {vm.name} was last on host {home}, which is offline and has not given it up: until then it starts "
            "nowhere else, since it might run twice",
            field="host",
            value=home,
            remedy=f"Start the agent of {home}, or wait until it is back: serai host list. "
            f"If the machine is off for good: serai host fence {home} --is-off.",
        )
    if wanted is not None:
        asked = _bound_to(vm, wanted)
        return _named(vm, candidates, wanted, "host", lambda host: objection(asked, host, ties))
    choice = place(vm, candidates, ties, prefer=home)
    if home is None or choice.host == home:
        return choice
    return replace(choice, why=f"{home}, where it was, {choice.others[home]}; {choice.why}")


def choose_destination(vm: Vm, hosts: Iterable[Host], wanted: HostName | None, ties: Ties = FREE) -> Choice:
    """Choose where a running VM moves. A host named by `wanted` is the answer or the refusal names `to`.

    Naming a host outweighs `spec.host` and `schedulable`. Raises NotFoundError, ConflictError, UnavailableError,
    CapacityError.
    """
    candidates = sorted(hosts, key=lambda host: host.name)
    source = next((host for host in candidates if host.name == vm.status.host), None)
    if wanted is None:
        rest = [host for host in candidates if host is not source]
        against = {host.name: objection(vm.spec, host, ties) or _unlike(vm, source, host) for host in rest}
        fit = [host for host in rest if against[host.name] is None]
        others = {name: reason for name, reason in against.items() if reason is not None}
        if not fit:
            raise CapacityError(
                f"no other host will do for VM {vm.name}: {_reasons(others)}",
                field="to",
                remedy="Add a host, or free memory on one.",
            )
        return _choose(vm.spec, fit, others, None)
    if _find(candidates, wanted, "to") is source:
        raise ConflictError(
            f"VM {vm.name} runs on {wanted} already", field="to", value=wanted, remedy="Name another host."
        )
    asked = _bound_to(vm, wanted)
    return _named(vm, candidates, wanted, "to", lambda host: objection(asked, host, ties) or _unlike(vm, source, host))


def _find(hosts: list[Host], wanted: HostName, field: str) -> Host:
    host = next((host for host in hosts if host.name == wanted), None)
    if host is None:
        raise NotFoundError(
            f"there is no host {wanted}", field=field, value=wanted, remedy="See which there are: serai host list."
        )
    return host


def _bound_to(vm: Vm, wanted: HostName) -> VmSpec:
    return vm.spec.model_copy(update={"host": wanted})


def _named(vm: Vm, hosts: list[Host], wanted: HostName, field: str, against: Callable[[Host], str | None]) -> Choice:
    """The host that was asked for. Raises NotFoundError, or what speaks against it."""
    host = _find(hosts, wanted, field)
    reason = against(host)
    if reason is None:
        return Choice(wanted, _crowded("asked for by name", vm.spec, host))
    kind: type[SeraiError] = ConflictError
    if not _online(host):
        kind = UnavailableError
    elif reason == _lack_of_memory(vm.spec, host):
        kind = CapacityError
    raise kind(f"host {wanted} {reason}", field=field, value=wanted, remedy="Name another host: serai host list.")


def _choose(spec: VmSpec, fit: list[Host], others: Mapping[HostName, str], prefer: HostName | None) -> Choice:
    preferred = next((host for host in fit if host.name == prefer), None)
    if preferred is not None:
        return Choice(preferred.name, _crowded("it was there before", spec, preferred), others)
    if spec.host is not None:
        return Choice(spec.host, _crowded("asked for by name", spec, fit[0]), others)
    best = min(fit, key=lambda host: (_load(spec, host), host.name))
    left = format_size(max(free(best) - spec.memory, 0))
    if len(fit) == 1:
        why = f"the only host that will do ({_reasons(others)})" if others else "the only host"
    else:
        why = f"fewest committed resources of {len(fit)} hosts: {left} of memory stays free"
    return Choice(best.name, _crowded(why, spec, best), others)


def _crowded(why: str, spec: VmSpec, host: Host) -> str:
    """Processors may be promised more than once, but who asks for more than there are is told."""
    cpus = host.status.facts.cpus if host.status.facts is not None else spec.cpus
    return why if spec.cpus <= cpus else f"{why}; its {spec.cpus} CPUs share the {cpus} that {host.name} has"


def _load(spec: VmSpec, host: Host) -> float:
    assert host.status.facts is not None
    memory = (host.status.memory_committed + spec.memory) / max(usable(host), 1)
    cpus = (host.status.cpus_committed + spec.cpus) / max(host.status.facts.cpus, 1)
    return round(memory + CPU_WEIGHT * cpus, 9)


def _nothing_fits(spec: VmSpec, hosts: list[Host], others: Mapping[HostName, str], ties: Ties) -> SeraiError:
    if not hosts:
        return UnavailableError(
            "there is no host yet", field="spec.host", value=spec.host, remedy="Start a host agent: see serai doctor."
        )
    online = [host for host in hosts if _online(host)]
    if online and spec.memory > max(usable(host) for host in online):
        largest = max(online, key=usable)
        return InvalidError(
            f"no host has that much memory: {largest.name} has the most, {format_size(usable(largest))} for VMs",
            field="spec.memory",
            value=format_size(spec.memory),
            remedy=f"Ask for {format_size(usable(largest))} or less.",
        )
    if spec.host is not None and spec.host in others:
        offline = others[spec.host] == "is offline"
        refusal: type[SeraiError] = UnavailableError if offline else CapacityError
        return refusal(
            f"host {spec.host} {others[spec.host]}",
            field="spec.host",
            value=spec.host,
            remedy="Start its agent." if offline else "Name another host, or none.",
        )
    if online and not any(host.spec.schedulable for host in online):
        return CapacityError(
            f"no host will do: {_reasons(others)}",
            field="spec.host",
            value=spec.host,
            remedy="Name a host, or let one take new VMs: serai host edit NAME --schedulable.",
        )
    lacking = [bridge for bridge in ties.bridges if not any(_may_have(host, bridge) for host in online)]
    if online and lacking:
        return ConflictError(
            f"no host will do: {_reasons(others)}",
            field="spec.vnics",
            value=ties.bridges[lacking[0]],
            remedy=f"Make the bridge {lacking[0]} on a host, for example with 'serai host network take UPLINK --host "
            f"HOST --bridge {lacking[0]}'.",
        )
    if online and all(host.status.facts and _lack_of_machine(spec, host.status.facts) for host in online):
        return UnsupportedError(
            f"no host will do: {_reasons(others)}",
            field="spec.machine",
            value=spec.machine_type or spec.machine,
            remedy="Install or upgrade QEMU on a host (serai doctor), or choose another machine.",
        )
    kind: type[SeraiError] = CapacityError if online else UnavailableError
    return kind(
        f"no host will do: {_reasons(others)}",
        field="spec.memory" if online else "spec.host",
        value=format_size(spec.memory) if online else spec.host,
        remedy="Stop a VM, ask for less, or add a host." if online else "Start a host's agent.",
    )


def _may_have(host: Host, bridge: str) -> bool:
    return host.status.bridges is None or bridge in host.status.bridges


def _reasons(others: Mapping[HostName, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in sorted(others.items())) or "there is none"


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
