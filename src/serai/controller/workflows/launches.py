"""Launches: what a host needs to run a VM is made ready, and put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from serai.controller.jobs.workflow import AnyContext
from serai.controller.services.checks import need_online
from serai.controller.workflows.copies import bring_image, with_copy
from serai.core import launch as plan
from serai.core.launch import DiskPlan, Parts
from serai.schema.commands.vm import LaunchBody
from serai.schema.commands.volume import VOLUME_ADMIT, AdmitInitiator
from serai.schema.document import VmDocument
from serai.schema.errors import ConflictError, StaleError, TakenError
from serai.schema.host import Host
from serai.schema.ids import HostName, VmId
from serai.schema.image import ImageKind
from serai.schema.volume import ExportKind

T = TypeVar("T")


async def launch_body(ctx: AnyContext, parts: Parts, host: Host, epoch: int) -> LaunchBody:
    """What a command to run the VM says for one host and epoch.

    When this returns, its disks are open to the epoch, and what it boots from is there.
    """
    vm, image, facts = parts.vm, parts.image, need_online(host)
    machine = vm.spec.machine_type or plan.pin_machine(vm.spec.machine, facts)
    plan.check_machine(machine, facts, None)
    disks = [await _admit(ctx, vm.id, disk, host.name, epoch) for disk in parts.disks]
    manifest = image.status.manifest if image is not None else None
    if image is not None and manifest is not None and manifest.kind is ImageKind.KERNEL:
        await bring_image(ctx, image, host.name)
    opened = replace(parts, disks=disks)
    return LaunchBody(
        launch=plan.launch(opened, epoch=epoch, host=host.name, accel=facts.accel, machine=machine, secret=ctx.secret),
        document=VmDocument(
            vm=vm,
            volumes=[disk.volume for disk in disks],
            pools=list({disk.pool.id: disk.pool for disk in disks}.values()),
            networks=list(parts.networks.values()),
            image=image,
        ),
        restart=vm.spec.restart,
        autostart=vm.spec.autostart,
        autostart_order=vm.spec.autostart_order,
    )


async def _admit(ctx: AnyContext, vm: VmId, disk: DiskPlan, host: HostName, epoch: int) -> DiskPlan:
    """Let a lease epoch open one of the VM's volumes, and say how. A local pool is checked to be on the host."""
    volume, pool = disk.volume, disk.pool
    if pool.spec.export is ExportKind.NONE:
        if pool.spec.host != host:
            raise ConflictError(
                f"volume {volume.name} is on {pool.spec.host} only",
                field="host",
                value=host,
                remedy="Its pool is not exported: run the VM there, or use an iscsi pool.",
            )
        return disk
    right = plan.admission(ctx.secret, vm, epoch, host)
    body = AdmitInitiator(pool=pool.id, volume=volume.id, admission=right)
    try:
        answer = await ctx.send(VOLUME_ADMIT, pool.spec.host, body)
    except StaleError as error:
        # The target is a witness: what it knows may be newer than the database.
        known = error.info.value
        if error.info.field == "epoch" and known is not None and known.isdecimal():
            async with ctx.store.transaction() as tx:
                await ctx.rights.burn(tx, vm, int(known), taken=isinstance(error, TakenError))
        raise
    return replace(disk, portal=answer.portal, target=answer.target, lun=answer.lun)


async def with_boot(ctx: AnyContext, parts: Parts, host: HostName, send: Callable[[], Awaitable[T]]) -> T:
    """What `send` answers: a command to `host` with a launch; what it boots from is replaced if damaged."""
    if parts.image is None:
        return await send()
    return await with_copy(ctx, parts.image, host, send, had=True)
