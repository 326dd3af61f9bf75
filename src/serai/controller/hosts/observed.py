"""What hosts report, written to the store: observed status only, never what is wanted.

Whose report of a VM is believed is in `core/observed.py`; one that proves a commit commits the lease here too.
A full report that does not list a VM whose lease the host holds is believed as well: the VM is shown `unknown`, or
`stopped` where the host's own journal says that it gave the lease up. Never "running" on nobody's word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from serai.controller.services import vms
from serai.controller.services.rights import Rights
from serai.controller.store import Transaction, View
from serai.core import lease as rules
from serai.core.observed import BEGUN, Event, believed, merged
from serai.schema.host import Host, HostFacts, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName
from serai.schema.lease import Claim, Lease
from serai.schema.reports import HostReport, Introduction
from serai.schema.resource import Condition
from serai.schema.vm import HOST_SILENT, Vm, VmReport, VmState
from serai.schema.volume import Pool, PoolStatus

log = logging.getLogger(__name__)

FULL = 1 << 20
"""Bytes free in a pool below which it counts as full: what a guest writes at once may be more."""
FREE_STEP = 64 << 20
"""Bytes by which a pool's free space must differ to be written again: it changes all the time."""


async def news(view: View, reports: Iterable[VmReport]) -> list[VmReport]:
    """Those reports that would change anything: most say what is known."""
    found = []
    for report in reports:
        vm = await view.vms.seek(report.vm)
        lease = await view.leases.get(report.vm)
        if vm is None or not believed(lease, report):
            continue
        if merged(vm.status, report) != vm.status:
            found.append(report)
    return found


async def apply(tx: Transaction, rights: Rights, report: VmReport) -> None:
    """Write a report, if it is believed and no newer one was written."""
    vm, lease = await tx.vms.seek(report.vm), await tx.leases.get(report.vm)
    if vm is None or lease is None or not believed(lease, report):
        return
    if (report.epoch, report.starts, report.sequence) <= await tx.vms.reported(vm.id):
        return
    if report.epoch != lease.epoch:
        await rights.commit(tx, vm.id, report.epoch, report.host)
    await tx.vms.note_report(vm.id, report.epoch, report.starts, report.sequence)
    await vms.report(tx, vm, report)


async def unlisted(view: View, said: HostReport) -> list[tuple[Vm, Lease]]:
    """VMs that are shown as begun on this host, whose lease it holds, and which its full report does not list.

    Two kinds are left alone. One on the move: its job asks the journals. One whose state began after the report was
    made up: reports may overtake one another, and this one was written before the VM was there.
    """
    listed = {one.vm for one in said.vms}
    found = []
    for vm_id in await view.vms.ids_on(said.host, BEGUN) - listed:
        vm, lease = await view.vms.get(vm_id), await view.leases.get(vm_id)
        if lease is None or lease.host != said.host or lease.offered_to is not None:
            continue
        if vm.status.since is None or vm.status.since < said.time:
            found.append((vm, lease))
    return found


async def write_unlisted(tx: Transaction, said: HostReport) -> None:
    """Say of such VMs what is known: not that they run. A later report that lists one makes good for it."""
    for vm, lease in await unlisted(tx, said):
        records = [record for record in said.leases if record.vm == vm.id]
        if rules.claim_of(records, lease.epoch) is Claim.RELEASED:
            event, reason = Event.RELEASED, f"{said.host} has given it up"
        elif vm.id in said.silent:
            event, reason = Event.UNLISTED, f"its QEMU on {said.host} does not answer; it is asked again and again"
        else:
            event, reason = Event.UNLISTED, f"{said.host} holds its lease but reports no such VM: see its agent's log"
        log.warning("VM %s was %s: %s", vm.name, vm.status.state, reason)
        await vms.observe(tx, vm.id, event, reason)


async def _unknown(view: View, host: HostName) -> list[tuple[Vm, Lease]]:
    """VMs that nobody has word of, and whose lease the host holds."""
    found = []
    for vm_id in await view.vms.ids_on(host, (VmState.UNKNOWN,)):
        lease = await view.leases.get(vm_id)
        if lease is not None and lease.host == host and lease.offered_to is None:
            found.append((await view.vms.get(vm_id), lease))
    return found


async def never_reported(view: View, said: HostReport) -> bool:
    """Whether the host has never reported a VM that it is to run, and does not list it: it may not know of the start.

    Its journal tells, of which an introduction has all that binds the host.
    """
    listed = {one.vm for one in said.vms} | set(said.silent)
    for vm, lease in await _unknown(view, said.host):
        if vm.id in listed or vm.status.since is None or vm.status.since >= said.time:
            continue
        if (await view.vms.reported(vm.id))[0] < lease.epoch:
            return True
    return False


async def write_not_held(tx: Transaction, said: Introduction) -> None:
    """A VM that its host's journal has no claim to run does not run there."""
    held = {(record.vm, record.epoch) for record in said.leases if record.claim in rules.BINDS}
    for vm, lease in await _unknown(tx, said.host):
        if (vm.id, lease.epoch) not in held and vm.id not in said.strays:
            await vms.observe(tx, vm.id, Event.NOT_HELD, f"{said.host} holds nothing of it: it was not started there")


async def greet(tx: Transaction, name: HostName, facts: HostFacts, new_id: HostId) -> Host:
    """A host said hello: made if it is new, its facts written, online."""
    known = await tx.hosts.named(name)
    bridges = None if known is None else known.status.bridges
    fence = None if known is None else known.status.fence
    state = HostState.ONLINE if fence is None else HostState.FENCED
    status = HostStatus(state=state, fence=fence, seen=tx.now, facts=facts, bridges=bridges)
    if known is None:
        host = Host(name=name, id=new_id, generation=1, created=tx.now, spec=HostSpec(), status=status)
        await tx.hosts.insert(host)
        await tx.emit("host.joined", f"host/{name}", host.id, f"{name} joined", state=HostState.ONLINE.value)
        return host
    before = known.status
    host = await tx.hosts.set_status(known.id, status)
    if before.state is HostState.OFFLINE:
        await back(tx, host)
    elif before.facts != facts:
        await tx.emit("host.facts", f"host/{name}", host.id, f"{name} says anew what it has")
    return host


async def lift_fence(tx: Transaction, host: Host) -> None:
    """A fenced host has given up all that it had lost."""
    await tx.hosts.update_status(host.id, state=HostState.ONLINE, fence=None)
    text = f"{host.name} has given up all that it had lost: it is fenced no more"
    await tx.emit("host.state", f"host/{host.name}", host.id, text, state=HostState.ONLINE.value)
    await _answers_again(tx, host)


async def back(tx: Transaction, host: Host) -> None:
    """A host that was silent answers again; the remark on its VMs goes."""
    await tx.hosts.update_status(host.id, state=HostState.ONLINE, seen=tx.now)
    await tx.emit("host.state", f"host/{host.name}", host.id, f"{host.name} is online", state=HostState.ONLINE.value)
    await _answers_again(tx, host)


async def _answers_again(tx: Transaction, host: Host) -> None:
    for vm in await tx.vms.on_host(host.name):
        if await vms.set_conditions(tx, vm, HOST_SILENT, []):
            await tx.emit("vm.status", f"vm/{vm.name}", vm.id, f"its host {host.name} answers again")


async def gone_silent(tx: Transaction, name: HostName, seconds: float, heard: datetime | None) -> None:
    """A host does not answer; `heard`: when it did last, if that is known.

    Its VMs keep their state: silence never means that a VM is dead.
    """
    host = await tx.hosts.named(name)
    if host is None or host.status.state is not HostState.ONLINE:
        return
    await tx.hosts.update_status(host.id, state=HostState.OFFLINE, seen=heard or host.status.seen)
    text = f"{name} has not answered for {seconds:.0f} s"
    await tx.emit("host.state", f"host/{name}", host.id, text, state=HostState.OFFLINE.value)
    remark = Condition(type=HOST_SILENT, message=f"host {name} does not answer; this is what it last said")
    for vm in await tx.vms.on_host(name):
        await vms.set_conditions(tx, vm, HOST_SILENT, [remark])
        await tx.emit("vm.status", f"vm/{vm.name}", vm.id, remark.message)


async def write_bridges(tx: Transaction, host: Host, bridges: list[str]) -> None:
    """Write which bridges a host has: VMs are placed by it."""
    await tx.hosts.update_status(host.id, bridges=bridges)
    text = f"{host.name} has {', '.join(bridges) or 'none'}"
    await tx.emit("host.bridges", f"host/{host.name}", host.id, text, bridges=bridges)


def pool_changed(before: PoolStatus, after: PoolStatus) -> bool:
    """Whether a pool's report is worth writing."""
    same = ("state", "path", "total", "reason")
    if any(getattr(before, name) != getattr(after, name) for name in same):
        return True
    if (before.free < FULL) != (after.free < FULL):
        return True
    return abs(before.free - after.free) > max(FREE_STEP, after.total // 100)


async def write_pools(tx: Transaction, pools: Iterable[tuple[Pool, PoolStatus]]) -> None:
    """Write what pools report."""
    for pool, status in pools:
        fields: dict[str, Any] = {name: getattr(status, name) for name in ("state", "path", "total", "free", "reason")}
        await tx.pools.update_status(pool.id, **fields)
        if pool.status.state != status.state:
            text = f"{pool.name} is {status.state}" + (f": {status.reason}" if status.reason else "")
            await tx.emit("pool.state", f"pool/{pool.name}", pool.id, text, state=status.state)
