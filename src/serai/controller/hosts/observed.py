"""What hosts report, written to the store: observed status only, never what is wanted.

A report is believed by the lease: one of an older epoch, or from a host that does not hold the lease, says nothing of
the VM. One of the epoch on offer, from the host that it was offered to, with vCPUs that may run, proves that the
destination has committed: nothing else starts them (host/migration). It commits the lease here too.

A full report that does not list a VM whose lease the host holds is believed as well: the VM is shown `unknown`, or
`stopped` where the host's own journal says that it gave the lease up. Never "running" on nobody's word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from serai.controller.services.rights import Rights
from serai.controller.store import Transaction, View
from serai.core import lease as rules
from serai.schema.host import Host, HostFacts, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName
from serai.schema.lease import Claim, Lease
from serai.schema.reports import HostReport
from serai.schema.resource import Condition
from serai.schema.vm import HOST_SILENT, Vm, VmReport, VmState, VmStatus
from serai.schema.volume import Pool, PoolStatus

log = logging.getLogger(__name__)

BEGUN = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.MIGRATING)
"""States that a VM reaches on a migration's destination only after the commit."""
FULL = 1 << 20
"""Bytes free in a pool below which it counts as full: what a guest writes at once may be more."""
FREE_STEP = 64 << 20
"""Bytes by which a pool's free space must differ to be written again: it changes all the time."""


def merged(vm: Vm, report: VmReport) -> VmStatus:
    """The VM's status with what a report says."""
    return vm.status.model_copy(
        update={
            "state": report.state,
            "host": report.host,
            "epoch": report.epoch,
            "reason": report.reason,
            "since": report.since,
            "pid": report.pid,
            "accel": report.accel,
            "running_generation": report.generation,
            "guest_agent": report.guest_agent,
            "restarts": report.restarts,
            "conditions": [one for one in vm.status.conditions if one.type != HOST_SILENT],
        }
    )


def believed(lease: Lease | None, report: VmReport) -> bool:
    """Whether a report speaks for the VM; one that proves a commit does (see `proves_commit`)."""
    if lease is None or report.state is VmState.DEFINED:
        # `defined` is a host's word that it has nothing to do with the VM; whoever has, says so itself.
        return False
    return (report.epoch == lease.epoch and report.host == lease.host) or proves_commit(lease, report)


def proves_commit(lease: Lease, report: VmReport) -> bool:
    """Whether a report can only come from a destination that has committed the standing offer."""
    return report.epoch == lease.highest and report.host == lease.offered_to and report.state in BEGUN


async def news(view: View, reports: Iterable[VmReport]) -> list[VmReport]:
    """Those reports that would change anything: most say what is known."""
    found = []
    for report in reports:
        vm = await view.vms.seek(report.vm)
        lease = await view.leases.get(report.vm)
        if vm is None or not believed(lease, report):
            continue
        if merged(vm, report) != vm.status:
            found.append(report)
    return found


async def apply(tx: Transaction, rights: Rights, report: VmReport) -> Vm | None:
    """Write a report, if it is believed and no newer one was written; returns the VM as it is then."""
    vm, lease = await tx.vms.seek(report.vm), await tx.leases.get(report.vm)
    if vm is None or lease is None or not believed(lease, report):
        return None
    if (report.epoch, report.starts, report.sequence) <= await tx.vms.reported(vm.id):
        return None
    if report.epoch != lease.epoch:
        await rights.commit(tx, vm.id, report.epoch, report.host)
    after = await tx.vms.set_status(vm.id, merged(vm, report))
    await tx.vms.note_report(vm.id, report.epoch, report.starts, report.sequence)
    if (vm.status.state, vm.status.host, vm.status.reason) != (report.state, report.host, report.reason):
        text = f"{vm.name} is {report.state} on {report.host}" + (f": {report.reason}" if report.reason else "")
        await tx.emit(
            "vm.state", f"vm/{vm.name}", vm.id, text, state=report.state.value, host=report.host, epoch=report.epoch
        )
    elif after.status != vm.status:
        await tx.emit("vm.status", f"vm/{vm.name}", vm.id, "")
    return after


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
            state, reason = VmState.STOPPED, f"{said.host} has given it up"
        elif vm.id in said.silent:
            state, reason = VmState.UNKNOWN, f"its QEMU on {said.host} does not answer; it is asked again and again"
        else:
            state, reason = VmState.UNKNOWN, f"{said.host} holds its lease but reports no such VM: see its agent's log"
        log.warning("VM %s was %s: %s", vm.name, vm.status.state, reason)
        await tx.vms.update_status(vm.id, state=state, reason=reason, since=tx.now, pid=None, guest_agent=False)
        text = f"{vm.name} is {state}: {reason}"
        await tx.emit("vm.state", f"vm/{vm.name}", vm.id, text, state=state.value, host=said.host, epoch=lease.epoch)


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


async def back(tx: Transaction, host: Host) -> None:
    """A host that was silent answers again; the remark on its VMs goes."""
    await tx.hosts.update_status(host.id, state=HostState.ONLINE, seen=tx.now)
    await tx.emit("host.state", f"host/{host.name}", host.id, f"{host.name} is online", state=HostState.ONLINE.value)
    for vm in await tx.vms.on_host(host.name):
        left = [one for one in vm.status.conditions if one.type != HOST_SILENT]
        if len(left) != len(vm.status.conditions):
            await tx.vms.update_status(vm.id, conditions=left)
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
        others = [one for one in vm.status.conditions if one.type != HOST_SILENT]
        await tx.vms.update_status(vm.id, conditions=[*others, remark])
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
