"""What several workflows do: look up a VM's parts, bring an image to a host, admit a lease epoch to its disks.

The actions here are idempotent: a repeated step sends the same commands with the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serai.controller.jobs.workflow import AnyContext
from serai.controller.services.rights import Rights
from serai.controller.workflows.copies import bring_image, with_copy
from serai.controller.workflows.shelf import ForLaunch, Shelf
from serai.core import launch as plan
from serai.core.lease import is_over
from serai.schema.commands.base import BodyT, Command
from serai.schema.commands.envelope import CommandProgress
from serai.schema.commands.vm import VM_RELEASE, VM_START, ReleaseVm, StartVm
from serai.schema.commands.volume import (
    VOLUME_ADMIT,
    VOLUME_CREATE,
    VOLUME_REFUSE,
    AdmitInitiator,
    CreateVolume,
    RefuseInitiator,
)
from serai.schema.document import VmDocument
from serai.schema.errors import CancelledByUserError, ConflictError, SeraiError, StaleError, UnavailableError
from serai.schema.host import Host, HostFacts, HostState
from serai.schema.ids import HostName, VmId
from serai.schema.image import Image, ImageKind
from serai.schema.launch import Launch
from serai.schema.lease import Lease
from serai.schema.vm import Vm, VmReport, VmState
from serai.schema.volume import ExportKind, Pool, Volume

T = TypeVar("T")

RETRY = 1.0
"""Seconds between two looks at who has reported, for a job that cannot be cancelled."""


@dataclass(frozen=True)
class Office:
    """What every workflow works with: the shelf of resources, the rights to run, and the installation's secret."""

    shelf: Shelf
    rights: Rights
    secret: bytes


def facts_of(host: Host) -> HostFacts:
    """An online host's facts. Raises UnavailableError with the host's name."""
    if host.status.state is not HostState.ONLINE or host.status.facts is None:
        raise UnavailableError(
            f"host {host.name} does not answer",
            field="host",
            value=host.name,
            remedy="Start its agent, or wait until it is back.",
        )
    return host.status.facts


async def image_of(office: Office, vm: Vm) -> Image | None:
    """The VM's image, if it has one."""
    return await office.shelf.image(vm.spec.image) if vm.spec.image is not None else None


async def make_volume(office: Office, ctx: AnyContext, volume: Volume, pool: Pool, image: Image | None) -> None:
    """Have the pool's host make a volume, empty or with an image's content."""

    def progress(step: CommandProgress) -> None:
        ctx.progress(step.fraction, f"volume {volume.name}: {step.phase}")

    body = CreateVolume(
        pool=pool.id, volume=volume.id, size=volume.spec.size, image=None if image is None else image.id
    )

    async def send() -> None:
        await ctx.send(VOLUME_CREATE, pool.spec.host, body, on_progress=progress)

    if image is None:
        await send()
    else:
        await with_copy(office.shelf, ctx, image, pool.spec.host, send)


async def _admit(office: Office, ctx: AnyContext, parts: ForLaunch, epoch: int) -> list[plan.DiskPlan]:
    """Let a lease epoch open the VM's volumes, and say how. Local pools are checked to be on the host."""
    plans = []
    host = parts.host.name
    right = plan.admission(office.secret, parts.vm.id, epoch)
    for volume, pool in parts.disks:
        if pool.spec.export is ExportKind.NONE:
            if pool.spec.host != host:
                raise ConflictError(
                    f"volume {volume.name} is on {pool.spec.host} only",
                    field="host",
                    value=host,
                    remedy="Its pool is not exported: run the VM there, or use an iscsi pool.",
                )
            plans.append(plan.DiskPlan(volume=volume, pool=pool))
            continue
        body = AdmitInitiator(pool=pool.id, volume=volume.id, admission=right)
        try:
            answer = await ctx.send(VOLUME_ADMIT, pool.spec.host, body)
        except StaleError as error:
            await _burn(office, ctx, parts.vm.id, error)
            raise
        plans.append(
            plan.DiskPlan(volume=volume, pool=pool, portal=answer.portal, target=answer.target, lun=answer.lun)
        )
    return plans


async def _burn(office: Office, ctx: AnyContext, vm: VmId, error: StaleError) -> None:
    """A target has admitted the epoch for another host: what it knows is newer than the database."""
    known = error.info.value
    if error.info.field == "epoch" and known is not None and known.isdecimal():
        async with ctx.store.transaction() as tx:
            await office.rights.burn(tx, vm, int(known))


async def await_reports(office: Office, ctx: AnyContext, vm_id: VmId) -> None:
    """Wait until all hosts have reported whose word is missing before the VM may start or move."""
    while True:
        news = office.rights.news()
        async with ctx.store.read() as view:
            missing = await office.rights.waits_for(view, vm_id)
        if not missing:
            ctx.waits_for("")
            return
        ctx.check_cancel()
        names = ", ".join(sorted(missing))
        ctx.waits_for(f"{names} to report, which may run it (a host that is off for good: serai host fence)")
        waits = {asyncio.ensure_future(news.wait()), asyncio.ensure_future(ctx.cancelled.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if ctx.cancelled.is_set() and not ctx.cancellable:
            await asyncio.sleep(RETRY)


async def release(office: Office, ctx: AnyContext, lease: Lease, reason: str, patience: float | None = None) -> None:
    """Have the holder give the lease up: the answer is the proof that nothing of the VM runs there, nor ever will.

    An epoch that a fence has ended, before or meanwhile, needs no answer.
    """
    body = ReleaseVm(vm=lease.vm, epoch=lease.epoch, reason=reason)
    if is_over(lease):
        return
    try:
        await ctx.send(VM_RELEASE, lease.host, body, patience=patience)
    except UnavailableError:
        if not is_over(await office.shelf.lease(lease.vm)):
            raise


async def send_or_leave(
    ctx: AnyContext, command: Command[BodyT, Any], host: HostName, body: BodyT, what: str, patience: float = 10.0
) -> None:
    """Send a command that clears up; a host that does not answer does it when it is back."""
    try:
        await ctx.send(command, host, body, patience=patience)
    except UnavailableError as error:
        async with ctx.store.transaction() as tx:
            await tx.leftovers.add(host, command, body, what, error.info.message)


async def refuse_or_leave(office: Office, ctx: AnyContext, vm: Vm, epoch: int) -> None:
    """Fence a lease epoch at all of the VM's targets that answer, and leave it to the others."""
    for volume, pool in await office.shelf.disks(vm):
        if pool.spec.export is ExportKind.ISCSI:
            body = RefuseInitiator(pool=pool.id, volume=volume.id, initiator=plan.initiator(vm.id, epoch))
            await send_or_leave(ctx, VOLUME_REFUSE, pool.spec.host, body, f"volume {volume.name}")


async def refuse(office: Office, ctx: AnyContext, vm: Vm, lease: Lease) -> None:
    """Fence the present epoch, and the last one that was offered, at all of the VM's targets."""
    for volume, pool in await office.shelf.disks(vm):
        if pool.spec.export is not ExportKind.ISCSI:
            continue
        for epoch in sorted({lease.epoch, lease.highest}):
            body = RefuseInitiator(pool=pool.id, volume=volume.id, initiator=plan.initiator(vm.id, epoch))
            await ctx.send(VOLUME_REFUSE, pool.spec.host, body)


async def make_launch(office: Office, ctx: AnyContext, parts: ForLaunch, epoch: int) -> Launch:
    """The VM's launch for one host and epoch: its disks are open to the epoch, and what it boots from is there."""
    vm, image, facts = parts.vm, parts.image, facts_of(parts.host)
    machine = vm.spec.machine_type or plan.pin_machine(vm.spec.machine, facts)
    plan.check_machine(machine, facts, None)
    disks = await _admit(office, ctx, parts, epoch)
    manifest = image.status.manifest if image is not None else None
    if image is not None and manifest is not None and manifest.kind is ImageKind.KERNEL:
        await bring_image(office.shelf, ctx, image, parts.host.name)
    found = plan.Parts(
        vm=vm, disks=disks, networks=parts.networks, image=image, image_id=image.id if image is not None else None
    )
    return plan.launch(found, epoch=epoch, accel=facts.accel, machine=machine, secret=office.secret)


def document(parts: ForLaunch) -> VmDocument:
    """What the host keeps of the VM, for a database that has lost it."""
    return VmDocument(
        vm=parts.vm,
        volumes=[volume for volume, _ in parts.disks],
        pools=list({pool.id: pool for _, pool in parts.disks}.values()),
        networks=list(parts.networks.values()),
        image=parts.image,
    )


async def with_boot(office: Office, ctx: AnyContext, parts: ForLaunch, send: Callable[[], Awaitable[T]]) -> T:
    """What `send` answers: a command to the parts' host with a launch; what it boots from is replaced if damaged."""
    image = parts.image
    if image is None:
        return await send()
    return await with_copy(office.shelf, ctx, image, parts.host.name, send, had=True)


async def start_vm(office: Office, ctx: AnyContext, vm_id: VmId) -> None:
    """Start a VM under its lease, on the lease's host, and record what became of it."""
    parts = await office.shelf.for_launch(vm_id)
    vm, lease = parts.vm, parts.lease
    facts = facts_of(parts.host)
    machine = vm.spec.machine_type or plan.pin_machine(vm.spec.machine, facts)
    pinned = {"machine_type": machine, "max_cpus": plan.room_for_cpus(vm.spec, machine)}
    if pinned != {name: getattr(vm.spec, name) for name in pinned}:
        vm = await office.shelf.set_vm_spec(vm_id, **pinned)
        parts = replace(parts, vm=vm)
    body = await _start_command(office, ctx, parts, lease)
    try:
        report = await with_boot(office, ctx, parts, lambda: _send_start(office, ctx, vm, lease, body))
    except StaleError as error:
        if error.info.field != "epoch":
            raise
        # The host has given that epoch up: a start elsewhere came to nothing.
        lease = await _renew(office, ctx, vm, lease)
        report = await _send_start(office, ctx, vm, lease, await _start_command(office, ctx, parts, lease))
    await office.shelf.started(report)
    warning = {"warning": facts.emulated} if report.accel != "kvm" and facts.emulated else {}
    ctx.result = {
        "host": lease.host,
        "why": vm.status.placement,
        "state": report.state,
        "accel": report.accel,
        "addresses": addresses(vm),
        **warning,
    }


async def _start_command(office: Office, ctx: AnyContext, parts: ForLaunch, lease: Lease) -> StartVm:
    vm = parts.vm
    return StartVm(
        launch=await make_launch(office, ctx, parts, lease.epoch),
        document=document(parts),
        epoch=lease.epoch,
        restart=vm.spec.restart,
        autostart=vm.spec.autostart,
        autostart_order=vm.spec.autostart_order,
    )


async def _send_start(office: Office, ctx: AnyContext, vm: Vm, lease: Lease, body: StartVm) -> VmReport:
    await office.shelf.starting(vm.id, lease.host)
    try:
        return await ctx.send(VM_START, lease.host, body, generation=vm.generation)
    except (UnavailableError, CancelledByUserError) as error:
        # It may have started or not: its host's next report says which.
        await office.shelf.set_vm_status(vm.id, state=VmState.UNKNOWN, reason=error.info.message)
        raise
    except SeraiError as error:
        # It did not run: unless it had crashed before, nothing has.
        state = VmState.CRASHED if vm.status.state is VmState.CRASHED else VmState.STOPPED
        await office.shelf.set_vm_status(vm.id, state=state, reason=f"could not start: {error.info.message}")
        raise


async def _renew(office: Office, ctx: AnyContext, vm: Vm, lease: Lease) -> Lease:
    """A fresh epoch on the same host, for a VM whose epoch is over there.

    Released once more first: it is idempotent, and the answer is the proof that nothing runs under the old one.
    """
    await await_reports(office, ctx, vm.id)
    await release(office, ctx, lease, "starts under a fresh epoch")
    await refuse(office, ctx, vm, lease)
    fresh = await office.shelf.advance(vm.id, lease.host)
    await office.shelf.set_vm_status(vm.id, epoch=fresh.epoch)
    return fresh


def addresses(vm: Vm) -> list[str]:
    """The VM's own addresses."""
    return [str(vnic.ip) for vnic in vm.spec.vnics if vnic.ip is not None]
