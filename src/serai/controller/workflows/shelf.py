"""The store as workflows need it: small reads and writes, each a transaction of its own that says what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from serai.controller.hosts import observed
from serai.controller.jobs.workflow import AnyContext
from serai.controller.services import capacity
from serai.controller.services.rights import Rights
from serai.controller.store.secrets import IMAGE_URL
from serai.controller.store.store import Store, Transaction, View
from serai.core.migration import PENDING
from serai.core.placement import Choice, Ties
from serai.lib.ids import new_secret
from serai.lib.timeouts import time_limit
from serai.schema.errors import NotFoundError
from serai.schema.host import Host
from serai.schema.ids import HostId, HostName, ImageId, NetworkId, PoolId, VmId, VolumeId
from serai.schema.image import Image, ImageManifest
from serai.schema.lease import Lease
from serai.schema.network import Network
from serai.schema.resource import Condition
from serai.schema.ticket import Purpose, Ticket
from serai.schema.vm import MigrationSummary, Vm, VmReport, VmState
from serai.schema.volume import Pool, PoolStatus, Volume, VolumeState

TICKET_LIFE = timedelta(seconds=60)
FREE: dict[str, Any] = {"vm": None, "owner": None}
"""The status of a volume that no VM has, and that is deleted with none."""


@dataclass(frozen=True)
class ForPlacing:
    """A VM, its lease, all hosts (without what the VM itself holds there), and what ties it to some of them."""

    vm: Vm
    lease: Lease | None
    hosts: list[Host]
    ties: Ties


async def _for_placing(view: View, vm_id: VmId) -> ForPlacing:
    vm, lease = await view.vms.get(vm_id), await view.leases.get(vm_id)
    hosts = await capacity.all_hosts(view, but_vm=vm_id)
    return ForPlacing(vm, lease, hosts, await capacity.ties(view, vm, starts=vm.spec.running))


@dataclass(frozen=True)
class ForLaunch:
    """A VM and all that its launch on `host` is made of; `disks` in the VM's order."""

    vm: Vm
    lease: Lease
    host: Host
    image: Image | None
    networks: dict[NetworkId, Network]
    disks: list[tuple[Volume, Pool]]


async def _disks(view: View, vm: Vm) -> list[tuple[Volume, Pool]]:
    found = []
    for volume_id in vm.spec.volumes:
        volume = await view.volumes.get(volume_id)
        found.append((volume, await view.pools.get(volume.spec.pool)))
    return found


async def _set_status(write: Transaction, vm: VmId, **fields: Any) -> Vm:
    before = await write.vms.get(vm)
    if "state" in fields and fields["state"] is not before.status.state:
        fields.setdefault("since", write.now)
    after = await write.vms.update_status(vm, **fields)
    if after.status != before.status:
        text = f"{after.name} is {after.status.state}" + (f": {after.status.reason}" if after.status.reason else "")
        facts = {"state": after.status.state, "host": after.status.host}
        await write.emit("vm.state", f"vm/{after.name}", vm, text, **facts)
    return after


async def _set_conditions(write: Transaction, vm: VmId, kind: str, conditions: list[Condition]) -> None:
    found = await write.vms.get(vm)
    others = [condition for condition in found.status.conditions if condition.type != kind]
    if [*others, *conditions] != found.status.conditions:
        await write.vms.update_status(vm, conditions=[*others, *conditions])


async def _release_removed_disks(write: Transaction, vm: VmId) -> None:
    found = await write.vms.get(vm)
    for volume in await write.volumes.of_vm(vm):
        if volume.id not in found.spec.volumes:
            await write.volumes.update_status(volume.id, **FREE)
            text = f"{volume.name} is no disk of {found.name} any more"
            await write.emit("volume.state", f"volume/{volume.name}", volume.id, text)


class Shelf:
    """Reads raise NotFoundError; writes emit the event that tells watchers."""

    def __init__(self, store: Store, uploads: Uploads, rights: Rights) -> None:
        self._store = store
        self._uploads = uploads
        self._rights = rights

    # --- reads ---

    async def vm(self, vm_id: VmId) -> Vm:
        async with self._store.read() as view:
            return await view.vms.get(vm_id)

    async def host(self, name: HostName) -> Host:
        async with self._store.read() as view:
            return await view.hosts.need(name)

    async def host_of_id(self, host_id: HostId) -> Host:
        async with self._store.read() as view:
            return await view.hosts.get(host_id)

    async def hosts(self, but_vm: VmId | None = None) -> list[Host]:
        """All hosts, with what is committed on each; what one VM itself holds is left out."""
        async with self._store.read() as view:
            return await capacity.all_hosts(view, but_vm=but_vm)

    async def pool(self, pool_id: PoolId) -> Pool:
        async with self._store.read() as view:
            return await view.pools.get(pool_id)

    async def volume(self, volume_id: VolumeId) -> Volume:
        async with self._store.read() as view:
            return await view.volumes.get(volume_id)

    async def image(self, image_id: ImageId) -> Image:
        async with self._store.read() as view:
            return await view.images.get(image_id)

    async def for_placing(self, vm_id: VmId) -> ForPlacing:
        """What placing a VM is decided by, as of one moment."""
        async with self._store.read() as view:
            return await _for_placing(view, vm_id)

    async def for_launch(self, vm_id: VmId, host: HostName | None = None) -> ForLaunch:
        """What a launch of a VM needs, as of one moment; on its lease's host unless another is named."""
        async with self._store.read() as view:
            vm, lease = await view.vms.get(vm_id), await view.leases.need(vm_id)
            return ForLaunch(
                vm=vm,
                lease=lease,
                host=await view.hosts.need(host or lease.host),
                image=await view.images.get(vm.spec.image) if vm.spec.image is not None else None,
                networks={vnic.network: await view.networks.get(vnic.network) for vnic in vm.spec.vnics},
                disks=await _disks(view, vm),
            )

    async def disks(self, vm: Vm) -> list[tuple[Volume, Pool]]:
        """Its volumes with their pools, in the order of its disks."""
        async with self._store.read() as view:
            return await _disks(view, vm)

    # --- VMs ---

    async def set_vm_status(self, vm: VmId, **fields: Any) -> Vm:
        async with self._store.transaction() as write:
            return await _set_status(write, vm, **fields)

    async def set_vm_spec(self, vm: VmId, **fields: Any) -> Vm:
        async with self._store.transaction() as write:
            found = await write.vms.get(vm)
            return await write.vms.set_spec(vm, found.spec.model_copy(update=fields))

    async def set_vm_conditions(self, vm: VmId, kind: str, conditions: list[Condition]) -> None:
        """Replace the VM's conditions of one type."""
        async with self._store.transaction() as write:
            await _set_conditions(write, vm, kind, conditions)

    async def starting(self, vm: VmId, host: HostName) -> None:
        """A VM begins to start; but a repeated step may find it running, and its repeated answer is no news."""
        async with self._store.transaction() as write:
            if (await write.vms.get(vm)).status.state not in observed.BEGUN:
                await _set_status(write, vm, host=host, state=VmState.STARTING, reason="")

    async def started(self, report: VmReport) -> None:
        """A VM runs as its spec says: nothing is pending, and it has let go of the disks that it has no more."""
        async with self._store.transaction() as write:
            await observed.apply(write, self._rights, report)
            await _set_conditions(write, report.vm, PENDING, [])
            await _release_removed_disks(write, report.vm)

    async def take_report(self, report: VmReport) -> None:
        """What a host answered, written before the job says done; unless what is known is newer, as in a repeat."""
        async with self._store.transaction() as write:
            await observed.apply(write, self._rights, report)

    async def arrived(self, vm: VmId, host: HostName, epoch: int, summary: MigrationSummary, why: str) -> None:
        """The VM is on another host now, and `why` it is that one."""
        fields: dict[str, Any] = {"host": host, "epoch": epoch, "last_migration": summary}
        fields["placement"] = f"moved from {summary.source}: {why}"
        found = await self.vm(vm)
        if found.status.state is VmState.MIGRATING:
            fields["state"] = VmState.RUNNING
            fields["reason"] = f"arrived from {summary.source}"
        await self.set_vm_status(vm, **fields)

    async def drop_vm(self, vm: VmId) -> None:
        """Forget the VM and its lease."""
        async with self._store.transaction() as write:
            try:
                found = await write.vms.get(vm)
            except NotFoundError:
                return
            for volume in await write.volumes.of_vm(vm):
                # Those that were never made go with the row; those that exist were dropped, or are somebody's to keep.
                if volume.status.state is VolumeState.CREATING:
                    await write.volumes.delete(volume.id)
                else:
                    await write.volumes.update_status(volume.id, **FREE)
            await self._rights.forget(write, vm)
            await write.vms.delete(vm)
            await write.emit("vm.deleted", f"vm/{found.name}", vm, f"{found.name} is deleted")

    async def release_removed_disks(self, vm: VmId) -> None:
        """Volumes that the VM's spec names no more are nobody's from now on: the VM has let go of them."""
        async with self._store.transaction() as write:
            await _release_removed_disks(write, vm)

    # --- leases ---

    async def lease(self, vm: VmId) -> Lease:
        async with self._store.read() as view:
            return await view.leases.need(vm)

    async def place(self, vm: VmId, decide: Callable[[ForPlacing], Choice]) -> Choice:
        """A new VM gets its host, as `decide` says, and its first lease there. Raises what `decide` raises."""
        async with self._store.transaction() as write:
            found = await _for_placing(write, vm)
            choice = decide(found)
            await self._rights.first(write, vm, choice.host)
            own = [str(vnic.ip) for vnic in found.vm.spec.vnics if vnic.ip is not None]
            await _set_status(write, vm, host=choice.host, placement=choice.why, addresses=own, epoch=1)
            return choice

    async def ensure_lease(self, vm: VmId, host: HostName) -> Lease:
        """The VM's first lease, unless it has one."""
        async with self._store.transaction() as write:
            return await self._rights.first(write, vm, host)

    async def offer(self, vm: VmId, offer_id: str, decide: Callable[[ForPlacing], HostName]) -> Lease:
        """Offer the next epoch to the host that `decide` names, or let it raise: what it decides by cannot change
        until the offer stands."""
        async with self._store.transaction() as write:
            to = decide(await _for_placing(write, vm))
            return await self._rights.offer(write, vm, to, offer_id)

    async def commit(self, vm: VmId, epoch: int, host: HostName) -> Lease:
        async with self._store.transaction() as write:
            return await self._rights.commit(write, vm, epoch, host)

    async def withdraw(self, vm: VmId, offer_id: str) -> Lease:
        async with self._store.transaction() as write:
            return await self._rights.withdraw(write, vm, offer_id)

    async def advance(self, vm: VmId, host: HostName) -> Lease:
        async with self._store.transaction() as write:
            return await self._rights.advance(write, vm, host)

    # --- hosts, pools, volumes, images ---

    async def add_bridge(self, host: HostId, bridge: str) -> None:
        """A host has one more bridge."""
        async with self._store.transaction() as write:
            found = await write.hosts.get(host)
            if found.status.bridges is not None and bridge not in found.status.bridges:
                await observed.write_bridges(write, found, sorted([*found.status.bridges, bridge]))

    async def set_pool_status(self, pool: PoolId, status: PoolStatus) -> None:
        async with self._store.transaction() as write:
            found = await write.pools.set_status(pool, status)
            await write.emit("pool.state", f"pool/{found.name}", pool, f"{found.name} is {status.state}")

    async def delete_pool(self, pool: PoolId) -> None:
        async with self._store.transaction() as write:
            name = (await write.pools.get(pool)).name
            await write.pools.delete(pool)
            await write.emit("pool.deleted", f"pool/{name}", pool)

    async def set_volume_status(self, volume: VolumeId, **fields: Any) -> None:
        async with self._store.transaction() as write:
            found = await write.volumes.update_status(volume, **fields)
            await write.emit("volume.state", f"volume/{found.name}", volume, f"{found.name} is {found.status.state}")

    async def let_go(self, volume: VolumeId, vm: Vm) -> None:
        """A volume that an edit had given to a VM is free again."""
        async with self._store.transaction() as write:
            found = await write.volumes.get(volume)
            if found.status.vm == vm.id:
                await write.volumes.update_status(volume, **FREE)
                text = f"{found.name} is no disk of {vm.name}"
                await write.emit("volume.state", f"volume/{found.name}", volume, text)

    async def delete_volume(self, volume: VolumeId) -> None:
        async with self._store.transaction() as write:
            name = (await write.volumes.get(volume)).name
            await write.volumes.delete(volume)
            await write.emit("volume.deleted", f"volume/{name}", volume)

    async def set_image_status(self, image: ImageId, **fields: Any) -> None:
        async with self._store.transaction() as write:
            found = await write.images.update_status(image, **fields)
            await write.emit("image.state", f"image/{found.name}", image, f"{found.name} is {found.status.state}")

    async def add_image_host(self, image: ImageId, host: HostName) -> None:
        """One more host has a copy."""
        async with self._store.transaction() as write:
            found = await write.images.get(image)
            if host not in found.status.hosts:
                await write.images.update_status(image, hosts=[*found.status.hosts, host])

    async def drop_image_host(self, image: ImageId, host: HostName, reason: str) -> None:
        """One host has no copy any more, for that reason."""
        async with self._store.transaction() as write:
            found = await write.images.get(image)
            left = [name for name in found.status.hosts if name != host]
            await write.images.update_status(image, hosts=left)
            await write.emit("image.damaged", f"image/{found.name}", image, f"{host}: {reason}")

    async def image_url(self, image: ImageId) -> str | None:
        """The URL with its credentials, if it has some: see `services/image_actions.py`."""
        async with self._store.read() as view:
            return await view.secrets.get(f"image/{image}", IMAGE_URL)

    async def forget_image_url(self, image: ImageId) -> None:
        """The content is here: nobody needs the credentials any more."""
        async with self._store.transaction() as write:
            await write.secrets.drop(f"image/{image}")

    async def delete_image(self, image: ImageId) -> None:
        async with self._store.transaction() as write:
            name = (await write.images.get(image)).name
            await write.images.delete(image)
            await write.secrets.drop(f"image/{image}")
            await write.emit("image.deleted", f"image/{name}", image)

    async def wait_upload(self, ctx: AnyContext, image: ImageId, host: HostName) -> ImageManifest:
        """Wait until the content of an uploaded image has come in; the job can be cancelled meanwhile."""
        return await self._uploads.wait(ctx, image, host)

    # --- tickets ---

    async def issue_ticket(
        self, purpose: Purpose, *, resource: str, holder: str, server: str, params: dict[str, str] | None = None
    ) -> Ticket:
        """A one-use ticket for the data channel, good for a minute."""
        async with self._store.transaction() as write:
            ticket = Ticket(
                id=new_secret(),
                purpose=purpose,
                resource=resource,
                holder=holder,
                server=server,
                expires=write.now + TICKET_LIFE,
                params=params or {},
            )
            await write.tickets.add(ticket)
            return ticket


class Uploads:
    """Where an upload's job and its bytes meet: the job says which host receives, the API relays the bytes there."""

    def __init__(self) -> None:
        self._hosts: dict[ImageId, HostName] = {}
        self._done: dict[ImageId, asyncio.Future[ImageManifest]] = {}
        self._expected = asyncio.Condition()

    async def wait(self, ctx: AnyContext, image: ImageId, host: HostName) -> ImageManifest:
        """The job's side: expect the content, and return the manifest once it is in."""
        done: asyncio.Future[ImageManifest] = asyncio.get_running_loop().create_future()
        async with self._expected:
            self._hosts[image], self._done[image] = host, done
            self._expected.notify_all()
        ctx.waits_for("the image's content, which the client sends")
        cancelled = asyncio.ensure_future(ctx.cancelled.wait())
        waiting: set[asyncio.Future[Any]] = {done, cancelled}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            ctx.check_cancel()
            ctx.waits_for("")
            return await done
        finally:
            cancelled.cancel()
            self._hosts.pop(image, None)
            self._done.pop(image, None)

    async def host(self, image: ImageId, timeout: float = 10.0) -> HostName:
        """The API's side: which host receives. Raises TimeoutError if no job expects this image."""
        async with time_limit(timeout), self._expected:
            await self._expected.wait_for(lambda: image in self._hosts)
            return self._hosts[image]

    def finish(self, image: ImageId, outcome: ImageManifest | Exception) -> None:
        """The API's side: the content is in, or it failed."""
        done = self._done.get(image)
        if done is None or done.done():
            return
        if isinstance(outcome, Exception):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)
