"""A VM's VNICs: which MACs and addresses they get. After this each has both: nothing is left to decide."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address

from serai.controller.store import View
from serai.core import ipam
from serai.schema.errors import ConflictError
from serai.schema.ids import NetworkId, VmId
from serai.schema.network import Network
from serai.schema.vm import VnicSpec


async def resolve_vnics(
    view: View, vm_id: VmId, wanted: Sequence[VnicSpec], *, field: str = "spec.vnics"
) -> list[VnicSpec]:
    """Choose MACs and addresses where none are given. Raises SeraiError."""
    found: list[VnicSpec] = []
    used: dict[NetworkId, set[IPv4Address]] = {}
    others: dict[NetworkId, dict[IPv4Address, str]] = {}
    macs: set[str] = {vnic.mac for vnic in wanted if vnic.mac is not None}
    asked = [vnic.mac for vnic in wanted if vnic.mac is not None]
    for index, vnic in enumerate(wanted):
        here = f"{field}[{index}]"
        network = await view.networks.get(vnic.network, f"{here}.network")
        if network.id not in used:
            used[network.id] = await view.networks.used(network.id, but_vm=vm_id)
            others[network.id] = await _others(view, network, vm_id)
        taken = used[network.id] | set(others[network.id])
        if vnic.ip is not None:
            _refuse_others(others[network.id], vnic.ip, f"{here}.ip")
            ip = ipam.check(network.spec, vnic.ip, taken, field=f"{here}.ip")
        else:
            later = {other.ip for other in wanted if other.ip is not None}
            ip = ipam.next_free(network.spec, taken | later, name=network.name, field=f"{here}.network")
        used[network.id].add(ip)
        mac = vnic.mac
        if mac is not None:
            await _check_mac(view, vm_id, mac, asked, f"{here}.mac")
        else:
            mac = await _free_mac(view, vm_id, index, macs)
        macs.add(mac)
        found.append(vnic.model_copy(update={"mac": mac, "ip": ip}))
    return found


async def _others(view: View, network: Network, vm_id: VmId) -> dict[IPv4Address, str]:
    """Addresses on the network's wire that are not of its own VNICs, and whose they are."""
    found: dict[IPv4Address, str] = {}
    for host in await view.hosts.all():
        own = host.status.facts.addresses if host.status.facts is not None else {}
        for text in own.values():
            with contextlib.suppress(ValueError):  # of another family, or a name
                found[IPv4Address(text)] = f"host {host.name}"
    # Several networks may share a bridge, each with its range; an address that is asked for may be out of that.
    for other in await view.networks.on_bridge(network.spec.bridge):
        if other.id != network.id and other.spec.subnet.overlaps(network.spec.subnet):
            used = await view.networks.used(other.id, but_vm=vm_id)
            found.update(dict.fromkeys(used, f"a VM on network {other.name}"))
            if other.spec.gateway not in (None, network.spec.gateway):
                found[other.spec.gateway] = f"the gateway of network {other.name}"
    return found


def _refuse_others(others: dict[IPv4Address, str], wanted: IPv4Address, field: str) -> None:
    if wanted in others:
        raise ConflictError(
            f"{others[wanted]} has the address",
            field=field,
            value=wanted,
            remedy="Choose another, or none: a free one is chosen then.",
        )


async def _check_mac(view: View, vm_id: VmId, mac: str, asked: list[str], field: str) -> None:
    ipam.check_mac(mac, field)
    if asked.count(mac) > 1 or await view.networks.mac_taken(mac, but_vm=vm_id):
        raise ConflictError("the MAC is taken", field=field, value=mac, remedy="Choose another, or none.")


async def _free_mac(view: View, vm_id: VmId, index: int, macs: set[str]) -> str:
    attempt = 0
    while True:
        mac = ipam.mac(vm_id, index, attempt)
        if mac not in macs and not await view.networks.mac_taken(mac, but_vm=vm_id):
            return mac
        attempt += 1
