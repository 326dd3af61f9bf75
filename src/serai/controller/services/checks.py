"""Refusals that several services share: each names the field, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable

from serai.controller.store import View
from serai.core.lease import is_over
from serai.schema.errors import ConflictError, UnavailableError
from serai.schema.host import Host, HostFacts, HostState
from serai.schema.ids import ImageId, PoolId
from serai.schema.image import Image, ImageState
from serai.schema.vm import DiskSpec, Vm
from serai.schema.volume import Pool

WAIT = "Wait for that job's end."
WAIT_OR_CANCEL = "Wait for that job's end, or stop it: serai job cancel {job}."
BACK = "Start its agent, or wait until it is back: serai host list."


def need_online(host: Host, field: str = "host") -> HostFacts:
    """The facts of a host that answers. Raises UnavailableError for another."""
    if host.status.state is not HostState.ONLINE or host.status.facts is None:
        raise UnavailableError(f"host {host.name} is offline", field=field, value=host.name, remedy=BACK)
    return host.status.facts


async def need_pool(view: View, pool_id: PoolId, field: str) -> Pool:
    """A pool whose host answers. Raises NotFoundError, UnavailableError."""
    pool = await view.pools.get(pool_id, field)
    need_online(await view.hosts.need(pool.spec.host, field), field)
    return pool


async def need_holder(view: View, vm: Vm) -> None:
    """Raises UnavailableError if the host that holds the VM's lease does not answer; without one it is nowhere."""
    lease = await view.leases.get(vm.id)
    host = None if lease is None or is_over(lease) else await view.hosts.named(lease.host)
    if host is not None and host.status.state is not HostState.ONLINE:
        raise UnavailableError(
            f"VM {vm.name} is on host {host.name}, which is {host.status.state}",
            field="host",
            value=host.name,
            remedy=f"{BACK} If the machine is off for good: serai host fence {host.name} --is-off.",
        )


async def need_disks(view: View, vm: Vm, disks: Iterable[DiskSpec]) -> None:
    """Raises UnavailableError if the pool of one of the VM's disks is on a host that does not answer."""
    for disk in disks:
        volume = None if disk.volume is None else await view.volumes.seek(disk.volume)
        if volume is not None:
            pool = await view.pools.get(volume.spec.pool)
            host = await view.hosts.need(pool.spec.host)
            if host.status.state is not HostState.ONLINE:
                what = (
                    f"volume {volume.name} of VM {vm.name} is in pool {pool.name} on host {host.name}, which is offline"
                )
                raise UnavailableError(what, field="host", value=host.name, remedy=BACK)


async def need_image(view: View, image_id: ImageId, field: str) -> Image:
    """An image that VMs can start from, and that nobody deletes. Raises NotFoundError, ConflictError."""
    image = await view.images.get(image_id, field)
    what = f"image {image.name} is being deleted"
    await refuse_while(view, image.id, what, "image.delete", remedy="Use another image.")
    if image.status.state is not ImageState.READY:
        reason = f": {image.status.reason}" if image.status.reason else ""
        raise ConflictError(
            f"image {image.name} is {image.status.state}{reason}",
            field=field,
            value=image.name,
            remedy="Wait for its job to end." if image.status.state is ImageState.CREATING else "Create it anew.",
        )
    return image


async def refuse_while(view: View, target_id: str, what: str, *kinds: str, remedy: str = WAIT) -> None:
    """Raises ConflictError while a job of one of these kinds is at work on the resource.

    `{job}` in `remedy` stands for that job's id.
    """
    active = await view.jobs.active(target_id, *kinds)
    if active:
        job = active[0]
        raise ConflictError(
            f"{what} already: job {job.id} ({job.kind}) is {job.state}",
            field="job",
            value=job.id,
            remedy=remedy.format(job=job.id),
        )
