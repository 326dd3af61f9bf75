"""Status fields that are sums over other tables: what is promised on hosts, in pools, on networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serai.controller.store import View
from serai.controller.store.vms import Committed
from serai.core import ipam
from serai.core.placement import Ties
from serai.schema.host import Host
from serai.schema.ids import VmId
from serai.schema.network import MISSING, READY, Network
from serai.schema.vm import Vm
from serai.schema.volume import ExportKind, Pool


async def with_committed(view: View, hosts: Sequence[Host], *, but_vm: VmId | None = None) -> list[Host]:
    """The hosts with what VMs have been promised on them, one VM left out: what placement needs."""
    committed = await view.vms.committed(but=but_vm)
    filled = []
    for host in hosts:
        sums = committed.get(host.name, Committed())
        update = {"cpus_committed": sums.cpus, "memory_committed": sums.memory, "vms": sums.vms}
        filled.append(host.model_copy(update={"status": host.status.model_copy(update=update)}))
    return filled


async def all_hosts(view: View, *, but_vm: VmId | None = None) -> list[Host]:
    """Every host, with what is promised there."""
    return await with_committed(view, await view.hosts.all(), but_vm=but_vm)


async def with_volumes(view: View, pools: Sequence[Pool]) -> list[Pool]:
    """The pools with what is promised in them."""
    committed = await view.pools.committed()
    filled = []
    for pool in pools:
        size, count = committed.get(pool.id, (0, 0))
        status = pool.status.model_copy(update={"committed": size, "volumes": count})
        filled.append(pool.model_copy(update={"status": status}))
    return filled


async def with_use(view: View, networks: Sequence[Network]) -> list[Network]:
    """The networks with how many of their addresses are taken, and which hosts have their bridge."""
    counts = await view.networks.counts()
    said = {host.name: host.status.bridges for host in await view.hosts.all() if host.status.bridges is not None}
    filled = []
    for network in networks:
        have = [name for name, bridges in said.items() if network.spec.bridge in bridges]
        update: dict[str, Any] = {
            "state": MISSING if said and not have else READY,
            "hosts": sorted(have),
            "without": sorted(said.keys() - set(have)),
            "addresses_used": counts.get(network.id, 0),
            "addresses_total": ipam.total(network.spec),
        }
        filled.append(network.model_copy(update={"status": network.status.model_copy(update=update)}))
    return filled


async def for_placing(view: View, vm: Vm, *, starts: bool = True) -> tuple[list[Host], Ties]:
    """What placing a VM goes by: all hosts, without what it holds there itself, and what ties it to some of them.

    It is tied by its pools that are not exported and, if it starts there, by its networks' bridges.
    """
    local, bridges = set(), {}
    for disk in vm.spec.disks:
        assert disk.pool is not None, "a disk in the store has a pool"
        pool = await view.pools.get(disk.pool)
        if pool.spec.export is ExportKind.NONE:
            local.add(pool.spec.host)
    for vnic in vm.spec.vnics if starts else ():
        network = await view.networks.get(vnic.network)
        bridges[network.spec.bridge] = network.name
    return await all_hosts(view, but_vm=vm.id), Ties(local, bridges)
