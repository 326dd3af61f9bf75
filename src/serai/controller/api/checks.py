"""Refusals that several nouns share: each names the field, the value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from serai.controller.store import View
from serai.core.lease import is_over
from serai.schema.errors import CapacityError, ConflictError, InvalidError, UnavailableError
from serai.schema.host import Host, HostState
from serai.schema.ids import ImageId, PoolId
from serai.schema.image import Image, ImageState
from serai.schema.text import unsafe
from serai.schema.units import format_size
from serai.schema.vm import DiskSpec, Vm
from serai.schema.volume import Pool

SECTOR = 512
SSH_TYPE = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+")
SSH_BLOB = re.compile(r"[A-Za-z0-9+/]+=*")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
ONE_LINE = "cmdline"
"""The field where a new line would not be part of the text but end it."""


def need_online(host: Host, field: str) -> None:
    """Raises UnavailableError unless the host answers."""
    if host.status.state is not HostState.ONLINE or host.status.facts is None:
        raise UnavailableError(
            f"host {host.name} is offline",
            field=field,
            value=host.name,
            remedy="Start its agent, or wait until it is back: serai host list.",
        )


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
            remedy="Start its agent, or wait until it is back: serai host list. "
            f"If the machine is off for good: serai host fence {host.name} --is-off.",
        )


async def need_disks(view: View, vm: Vm, disks: Iterable[DiskSpec]) -> None:
    """Raises UnavailableError if the pool of one of the VM's disks is on a host that does not answer."""
    for disk in disks:
        volume = None if disk.volume is None else await view.volumes.seek(disk.volume)
        if volume is not None:
            pool = await view.pools.get(volume.spec.pool)
            host = await view.hosts.need(pool.spec.host)
            if host.status.state is not HostState.ONLINE:
                where = f"pool {pool.name} on host {host.name}, which is offline"
                raise UnavailableError(
                    f"volume {volume.name} of VM {vm.name} is in {where}",
                    field="host",
                    value=host.name,
                    remedy="Start its agent, or wait until it is back: serai host list.",
                )


def need_room(pool: Pool, size: int, field: str) -> None:
    """Raises InvalidError for half a sector, CapacityError if the pool has less than `size` bytes free.

    A pool that never reported is not judged.
    """
    if size % SECTOR:
        raise InvalidError(
            f"a volume is whole sectors of {SECTOR} bytes",
            field=field,
            value=size,
            remedy="Give a size such as 4G or 512M.",
        )
    if pool.status.total and size > pool.status.free:
        raise CapacityError(
            f"pool {pool.name} has only {format_size(pool.status.free)} free",
            field=field,
            value=format_size(size),
            remedy="Ask for less, delete volumes, or use another pool: serai pool list.",
        )


async def need_image(view: View, image_id: ImageId, field: str) -> Image:
    """An image that VMs can start from, and that nobody deletes. Raises NotFoundError, ConflictError."""
    image = await view.images.get(image_id, field)
    await refuse_while(
        view, image.id, f"image {image.name} is being deleted", "image.delete", remedy="Use another image."
    )
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


def check_ssh_keys(keys: Sequence[str], field: str) -> None:
    """Raises InvalidError for what is no line of an authorized_keys file: sshd would pass over it without a word."""
    for number, key in enumerate(keys):
        # Options, the key's type, the key, a comment. Word by word: one pattern for all of it takes quadratic time.
        words = [word for word in key.split(" ") if word]
        found = any(SSH_TYPE.fullmatch(one) and SSH_BLOB.fullmatch(two) for one, two in pairwise(words))
        if CONTROL.search(key) or not found:
            raise InvalidError(
                "this is no SSH public key",
                field=f"{field}[{number}]",
                value=repr(key[:40]),
                remedy="Send the line of a .pub file, like: ssh-ed25519 AAAA… me@laptop.",
            )


def refuse_unprintable(value: Any, field: str = "") -> None:
    """Raises InvalidError for text, at any depth, that no host can use: that with a null character."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{field}.{key}" if field else str(key)
            refuse_unprintable(str(key), field)
            refuse_unprintable(item, here)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            refuse_unprintable(item, f"{field}[{number}]")
    elif isinstance(value, str):
        plain = field.rpartition(".")[2] == ONE_LINE
        strange = next((one for one in value if one == "\0" or (plain and unsafe(one))), None)
        if strange is not None:
            at = value.index(strange)
            raise InvalidError(
                f"the text has a character that cannot be used: U+{ord(strange):04X} at {at}",
                field=field or "body",
                value=repr(value[max(0, at - 20) : at + 20]),
                remedy="Leave it out.",
            )
