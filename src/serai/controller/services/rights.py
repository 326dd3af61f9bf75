"""Who may run a VM: the one module that grants, ends and learns leases.

Every path that starts a VM, or offers it to another host, goes through it. Nothing is granted before the hosts whose
word is missing have reported (`grants.waits_for`): the database may be an old one. What happens here is part of the
caller's transaction; which hosts have reported, and which leases their holders have confirmed, is memory of this run of
the controller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from serai.controller.services import vms
from serai.controller.store import Transaction, View
from serai.controller.store.lease_rows import LeaseRows
from serai.core import grants
from serai.core import lease as rules
from serai.lib.ids import new_id
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Claim, Lease, LeaseRecord

log = logging.getLogger(__name__)

ALARM = "alarm"
"""Marks, in an event's data, what an operator should look at."""


class UnheardError(UnavailableError):
    """Hosts whose word is missing have not reported yet."""


class Rights:
    """One a controller, made before anything is granted."""

    def __init__(self) -> None:
        self._reported: set[str] = set()
        """Hosts that have told all their claims to this run."""
        self._proven: set[tuple[str, int]] = set()
        """(VM, epoch) that this run granted, or whose holder has told that it holds it; epoch 0: no lease yet."""
        self._unplaced: dict[tuple[str, str, int], LeaseRecord] = {}
        """By VM, host and epoch: claims to run VMs that the database did not know."""
        self.found_restored = False
        """Whether this run has found that the database was restored, or began before all hosts had reported to it."""
        self._news = asyncio.Event()

    async def begin(self, tx: Transaction) -> None:
        """A new run of the controller: nobody has reported to it."""
        await tx.lineage.begin(new_id())
        self.found_restored = await tx.lineage.restored()

    # --- whose word is missing ---

    def news(self) -> asyncio.Event:
        """Set when hosts have reported, or were fenced, after this was called."""
        return self._news

    def has_reported(self, host: HostName) -> bool:
        """Whether this run knows all claims of a host."""
        return host in self._reported

    async def waits_for(self, view: View, vm: VmId) -> frozenset[str]:
        """The hosts that must report before the VM may be started or offered."""
        lease = await view.leases.get(vm)
        hosts = {host.name: host.status.state for host in await view.hosts.all()}
        heard = grants.Heard(
            hosts=hosts,
            reported=self._reported,
            fenced=[name for name, state in hosts.items() if state is HostState.FENCED],
            proven=(vm, 0 if lease is None else lease.epoch) in self._proven,
            restored=await view.lineage.restored(),
        )
        if lease is not None:
            return grants.waits_for(lease, heard)
        # A VM that was created in an earlier run may have got its lease after the backup was made.
        everyone = set(hosts) if heard.restored or not heard.proven else set()
        return frozenset(everyone - self._reported - set(heard.fenced))

    async def _check(self, tx: Transaction, vm: VmId) -> None:
        if missing := await self.waits_for(tx, vm):
            names = ", ".join(sorted(missing))
            raise UnheardError(
                f"{names} may run the VM and has not reported since the controller was started",
                field="host",
                value=names,
                remedy="Start its agent. If it is off for good: serai host fence.",
            )

    # --- grants ---

    def created(self, tx: Transaction, vm: VmId) -> None:
        """A VM is new: nobody can hold it."""
        self._proves(tx, vm, 0)

    async def first(self, tx: Transaction, vm: VmId, host: HostName) -> Lease:
        """The first lease of a VM, unless it has one. Raises UnheardError."""
        if (known := await tx.leases.get(vm)) is not None:
            return known
        await self._check(tx, vm)
        lease = await LeaseRows(tx).insert(grants.first(vm, host))
        self._proves(tx, vm, lease.epoch)
        return lease

    async def offer(self, tx: Transaction, vm: VmId, to: HostName, offer_id: str) -> Lease:
        """Epoch `highest + 1` may go to `to`. Raises ConflictError if an offer stands, UnheardError, NotFoundError."""
        await self._check(tx, vm)
        lease = await tx.leases.need(vm)
        return await LeaseRows(tx).replace(lease, grants.offer(lease, to, offer_id))

    async def commit(self, tx: Transaction, vm: VmId, epoch: int, host: HostName) -> Lease:
        """`host` has committed `epoch`. Idempotent. Raises StaleError, NotFoundError."""
        lease = await tx.leases.need(vm)
        after = await LeaseRows(tx).replace(lease, grants.commit(lease, epoch, host))
        self._proves(tx, vm, epoch)
        if after != lease:
            name = (await tx.vms.get(vm)).name
            await tx.emit("vm.moved", f"vm/{name}", vm, f"{name} is on {host}", host=host, epoch=epoch)
        return after

    async def withdraw(self, tx: Transaction, vm: VmId, offer_id: str) -> Lease:
        """The offer will never be taken: by the destination's word, or by the source's promise. Idempotent."""
        lease = await tx.leases.need(vm)
        return await LeaseRows(tx).replace(lease, grants.withdraw(lease, offer_id))

    async def advance(self, tx: Transaction, released: Lease, host: HostName) -> Lease:
        """A fresh start on `host`, once the holder of `released` has released it, or a fence has ended it.

        Raises ConflictError, UnheardError, StaleError.
        """
        await self._check(tx, released.vm)
        lease = await tx.leases.need(released.vm)
        after = await LeaseRows(tx).replace(lease, grants.advance(lease, released, host))
        self._proves(tx, lease.vm, after.epoch)
        return after

    async def forget(self, tx: Transaction, vm: VmId) -> None:
        """The VM is deleted."""
        await LeaseRows(tx).drop(vm)

    # --- the fence ---

    async def fence(self, tx: Transaction, host: HostName) -> list[Lease]:
        """The host is off: nobody runs what it held. Returns the leases that ended."""
        ended = []
        for lease in await tx.leases.on_host(host):
            after = await LeaseRows(tx).replace(lease, grants.end(lease, host))
            if after != lease:
                ended.append(after)
        tx.on_commit(lambda: self._drop_unplaced(host))
        await self._may_be_complete(tx)
        tx.on_commit(self._ring)
        return ended

    async def end_move(self, tx: Transaction, vm: VmId, offer_id: str) -> Lease:
        """The destination was fenced and may have run the VM: both epochs are over. Idempotent."""
        lease = await tx.leases.need(vm)
        return await LeaseRows(tx).replace(lease, grants.end_move(lease, offer_id))

    # --- what journals tell ---

    async def report(
        self, tx: Transaction, host: HostName, records: Iterable[LeaseRecord], *, fenced: bool = False
    ) -> None:
        """A host has told all that its journal holds.

        While it is fenced its claims only burn their epochs: what it ran may have been started elsewhere since.
        """
        if fenced:
            for record in records:
                if (lease := await tx.leases.get(record.vm)) is not None:
                    await LeaseRows(tx).replace(lease, grants.burn(lease, record.epoch))
        else:
            await self.learn(tx, host, records)
        tx.on_commit(lambda: self._reported.add(host))
        tx.on_commit(self._ring)
        await self._may_be_complete(tx, host)

    async def concerned(self, view: View, host: HostName, records: Iterable[LeaseRecord]) -> bool:
        """Whether `learn` would change anything."""
        for record in records:
            lease = await view.leases.get(record.vm)
            if lease is not None and _learned(lease, host, record) != lease:
                return True
        return False

    async def learn(self, tx: Transaction, host: HostName, records: Iterable[LeaseRecord]) -> None:
        """Raise the leases to what a journal holds. Idempotent, and in any order of the hosts."""
        last = {(record.vm, record.epoch): record for record in records}
        for record in last.values():
            await self._raise(tx, host, record)
        for vm, epoch in {(vm, epoch) for vm, epoch in last if last[vm, epoch].claim in rules.RUNS}:
            held = await tx.leases.get(vm)
            if held is not None and (held.host, held.epoch) == (host, epoch):
                self._proves(tx, vm, epoch)

    async def _raise(self, tx: Transaction, host: HostName, record: LeaseRecord) -> None:
        lease = await tx.leases.get(record.vm)
        if lease is None:
            self._remember(host, record)
            return
        after = _learned(lease, host, record)
        if after == lease:
            return
        await LeaseRows(tx).replace(lease, after)
        if (after.host, after.epoch) != (lease.host, lease.epoch):
            await self._say_who_holds(tx, lease, after)

    async def _say_who_holds(self, tx: Transaction, before: Lease, after: Lease) -> None:
        vm = await tx.vms.get(after.vm)
        facts = {"host": after.host, "epoch": after.epoch}
        if (before.offered_to, before.highest) == (after.host, after.epoch):
            await tx.emit("vm.moved", f"vm/{vm.name}", vm.id, f"{vm.name} is on {after.host}", **facts)
            return
        text = (
            f"{after.host} runs {vm.name} under epoch {after.epoch}, which this database did not know"
            f" (it knew epoch {before.epoch} on {before.host})"
        )
        log.warning("%s", text)
        await tx.emit("lease.adopted", f"vm/{vm.name}", vm.id, text, severity=ALARM, **facts)
        reason = f"{after.host} holds its lease, and has yet to report it"
        await vms.found_on(tx, vm.id, after.host, after.epoch, reason)
        if before.host != after.host:
            body = ReleaseVm(vm=vm.id, epoch=before.epoch, reason=f"runs on {after.host}")
            why = f"{after.host} holds a later epoch"
            await tx.leftovers.add(before.host, VM_RELEASE, body, f"VM {vm.name}", why)

    def _remember(self, host: HostName, record: LeaseRecord) -> None:
        key = (record.vm, host, record.epoch)
        if record.claim in rules.RUNS:
            self._unplaced[key] = record
        else:
            self._unplaced.pop(key, None)

    def _drop_unplaced(self, host: HostName) -> None:
        self._unplaced = {key: claim for key, claim in self._unplaced.items() if key[1] != host}

    async def take_in(self, tx: Transaction, vm: VmId, record: LeaseRecord, host: HostName) -> None:
        """The lease of a VM that the database did not know, and that a host runs.

        Others may have told of a later epoch, or not have reported: that this host has proves nothing.
        """
        await LeaseRows(tx).insert(Lease(vm=vm, epoch=record.epoch, host=host, highest=record.epoch))
        claims = {key: claim for key, claim in self._unplaced.items() if key[0] == vm}
        for (_, other, _), claim in claims.items():
            await self._raise(tx, HostName(other), claim)

    async def burn(self, tx: Transaction, vm: VmId, epoch: int, *, taken: bool) -> None:
        """A target knows this epoch: the database is older than that if it does not, or if the epoch was `taken`.

        Taken: it was admitted for another host than that to which it was granted now.
        """
        lease = await tx.leases.need(vm)
        after = await LeaseRows(tx).replace(lease, grants.burn(lease, epoch))
        if taken or after != lease:
            await self.restored(tx, f"a target knows epoch {epoch} of VM {vm}")
            await self._may_be_complete(tx)

    async def retract(self, tx: Transaction, vm: VmId, epoch: int) -> Lease:
        """A grant that came to nothing: a target has admitted that epoch for another host, and ours has given it up."""
        lease = await tx.leases.need(vm)
        return await LeaseRows(tx).replace(lease, grants.retract(lease, epoch))

    async def restored(self, tx: Transaction, proof: str) -> None:
        """The database was restored from a backup: nothing is granted before all hosts have reported."""
        if await tx.lineage.restored():
            return
        await tx.lineage.set_restored(True)
        tx.on_commit(self._note_restored)
        text = f"the database was restored from a backup: {proof}. Nothing is started before all hosts have reported"
        log.warning("%s", text)
        await tx.emit("store.restored", "controller", "", text, severity=ALARM)

    async def _may_be_complete(self, tx: Transaction, reporting: str = "") -> None:
        if not await tx.lineage.restored():
            return
        hosts = await tx.hosts.all()
        missing = {host.name for host in hosts if host.status.state is not HostState.FENCED} - {reporting}
        if not missing - self._reported:
            await tx.lineage.set_restored(False)
            await tx.emit("store.complete", "controller", "", "all hosts have reported since the database was restored")

    def _proves(self, tx: Transaction, vm: VmId, epoch: int) -> None:
        tx.on_commit(lambda: self._proven.add((vm, epoch)))

    def _note_restored(self) -> None:
        self.found_restored = True

    def _ring(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _learned(lease: Lease, host: HostName, record: LeaseRecord) -> Lease:
    after = grants.learn(lease, host, record)
    # Either end's word is enough: the destination turned the offer down, or the source never sends its last state.
    if record.claim is Claim.ABANDONED and record.offer_id is not None and host in (lease.host, lease.offered_to):
        after = grants.withdraw(after, record.offer_id)
    return after
