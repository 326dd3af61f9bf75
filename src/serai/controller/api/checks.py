"""Refusals that several nouns share: each names the field, the value and the remedy."""

from __future__ import annotations

from serai.controller.store import View
from serai.schema.errors import CapacityError, ConflictError, UnavailableError
from serai.schema.host import Host, HostState
from serai.schema.image import Image, ImageState
from serai.schema.units import format_size
from serai.schema.volume import Pool


def need_online(host: Host, field: str) -> None:
    """Raises UnavailableError unless the host answers."""
    if host.status.state is not HostState.ONLINE or host.status.facts is None:
        raise UnavailableError(
            f"host {host.name} is offline",
            field=field,
            value=host.name,
            remedy="Start its agent, or wait until it is back: serai host list.",
        )


async def need_pool(view: View, name: str, field: str) -> Pool:
    """A pool whose host answers. Raises NotFoundError, UnavailableError."""
    pool = await view.pools.find(name, field)
    need_online(await view.hosts.find(pool.spec.host, field), field)
    return pool


def need_room(pool: Pool, size: int, field: str) -> None:
    """Raises CapacityError if the pool has less than `size` bytes free; a pool that never reported is not judged."""
    if pool.status.total and size > pool.status.free:
        raise CapacityError(
            f"pool {pool.name} has only {format_size(pool.status.free)} free",
            field=field,
            value=format_size(size),
            remedy="Ask for less, delete volumes, or use another pool: serai pool list.",
        )


async def need_image(view: View, name: str, field: str) -> Image:
    """An image that VMs can start from. Raises NotFoundError, ConflictError."""
    image = await view.images.find(name, field)
    if image.status.state is not ImageState.READY:
        reason = f": {image.status.reason}" if image.status.reason else ""
        raise ConflictError(
            f"image {image.name} is {image.status.state}{reason}",
            field=field,
            value=image.name,
            remedy="Wait for its job to end." if image.status.state is ImageState.CREATING else "Create it anew.",
        )
    return image


async def refuse_while(view: View, target_id: str, what: str, *kinds: str, remedy: str) -> None:
    """Raises ConflictError while a job of one of these kinds is at work on the resource."""
    active = await view.jobs.active(target_id, *kinds)
    if active:
        job = active[0]
        raise ConflictError(
            f"{what} already: job {job.id} ({job.kind}) is {job.state}", field="job", value=job.id, remedy=remedy
        )
