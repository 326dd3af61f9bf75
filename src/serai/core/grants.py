"""The rules by which the controller grants the right to run a VM. What else a lease means is in `lease.py`.

- An epoch is offered once, to one host; it is never offered again after it was withdrawn (`highest` only grows), so an
  old "yes" can never be mistaken for an answer to a newer offer.
- The controller's record may be older than the journals: its database can be restored from a backup. Journals are
  right then. `learn` raises the record to what a journal holds, and `waits_for` names the hosts that must have
  reported before an epoch may advance.
- An operator may say that a host is off (`end`): the epochs that may be held there are over, and the host gives them
  up when it is back (`lease.gives_up`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from serai.core.lease import RUNS, is_over
from serai.schema.errors import ConflictError, StaleError
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Lease, LeaseRecord


@dataclass(frozen=True)
class Heard:
    """What a controller has heard since its start.

    `hosts`: all that are known. `reported`: those that have told all their claims. `fenced`: those that an operator has
    declared off. `proven`: the holder has said that it holds this very epoch, or this run of the controller granted it.
    `restored`: a host or a target knows a later state of the database than the database itself.
    """

    hosts: Collection[str]
    reported: Collection[str]
    fenced: Collection[str] = ()
    proven: bool = True
    restored: bool = False


def first(vm: VmId, host: HostName) -> Lease:
    """The lease of a VM that is about to be started for the first time."""
    return Lease(vm=vm, epoch=1, host=host, highest=1)


def offer(lease: Lease, to: HostName, offer_id: str) -> Lease:
    """Epoch `highest + 1` may go to `to`. Raises ConflictError while another offer stands, or to the holder itself."""
    if lease.offered_to is not None:
        if lease.offer_id == offer_id and lease.offered_to == to:
            return lease
        raise ConflictError(
            f"the VM's lease is already offered to {lease.offered_to}",
            remedy="Wait for the move that is under way, or cancel its job.",
        )
    if is_over(lease):
        raise ConflictError(
            f"host {lease.host} was fenced: nothing of the VM runs that could move",
            field="host",
            value=lease.host,
            remedy="Start it: serai vm start.",
        )
    if to == lease.host:
        raise ConflictError(f"the VM's lease is already on {to}", field="to", value=to, remedy="Name another host.")
    return lease.model_copy(update={"offered_to": to, "offer_id": offer_id, "highest": lease.highest + 1})


def waits_for(lease: Lease, heard: Heard) -> frozenset[str]:
    """The hosts that must report before the next epoch may be granted or offered.

    Those that may hold the VM by the record: the holder, and the host that it is offered to. Any host may hold it if
    the record is not proven, or if the database was restored from a backup.
    """
    concerned: set[str] = {lease.host} if lease.offered_to is None else {lease.host, lease.offered_to}
    if heard.restored or not heard.proven:
        concerned |= set(heard.hosts)
    return frozenset(concerned - set(heard.reported) - set(heard.fenced))


def commit(lease: Lease, epoch: int, host: HostName) -> Lease:
    """The destination's journal says committed. Idempotent; raises StaleError for any epoch but the one on offer."""
    if lease.epoch == epoch and lease.host == host:
        return lease
    if lease.offered_to != host or lease.highest != epoch or epoch <= lease.ended:
        raise StaleError(f"epoch {epoch} on {host} is not on offer (held: {lease.epoch} on {lease.host})")
    return lease.model_copy(update={"epoch": epoch, "host": host, "offered_to": None, "offer_id": None})


def withdraw(lease: Lease, offer_id: str) -> Lease:
    """The destination's journal says abandoned (and only then). `highest` stays, so the epoch is burnt. Idempotent."""
    if lease.offer_id != offer_id:
        return lease
    return lease.model_copy(update={"offered_to": None, "offer_id": None})


def advance(lease: Lease, released: Lease, host: HostName) -> Lease:
    """A fresh start, after the old holder's journal says released. Raises ConflictError during a move.

    On the same host too: it never runs a released epoch again. Raises StaleError if the lease is not the one that was
    released: a journal may have told of a later holder meanwhile, and that one has released nothing.
    """
    if (lease.host, lease.epoch) != (released.host, released.epoch):
        raise StaleError(
            f"the VM's lease is on {lease.host} by now (epoch {lease.epoch}), and {released.host} gave up epoch"
            f" {released.epoch}",
            field="host",
            value=lease.host,
            remedy="See what became of it, and ask again.",
        )
    if lease.offered_to is not None:
        raise ConflictError(
            f"the VM's lease is offered to {lease.offered_to}", remedy="Wait for the move that is under way."
        )
    return lease.model_copy(update={"epoch": lease.highest + 1, "highest": lease.highest + 1, "host": host})


def end(lease: Lease, host: HostName) -> Lease:
    """The holder was fenced: its epoch is over. An offer to another host stands until that host's journal decides."""
    if host != lease.host or is_over(lease):
        return lease
    return lease.model_copy(update={"ended": lease.epoch})


def end_move(lease: Lease, offer_id: str) -> Lease:
    """The destination was fenced, and the source may have sent it the whole state: both epochs are over. Idempotent.

    The destination may have committed and written to the disks before it went down. The memory that waits at the source
    is older than the disks then, and must never go on.
    """
    if lease.offer_id != offer_id:
        return lease
    return lease.model_copy(update={"ended": lease.highest, "offered_to": None, "offer_id": None})


def learn(lease: Lease, host: HostName, record: LeaseRecord) -> Lease:
    """The lease as it must be in view of a claim in a host's journal. Idempotent, and in any order of the hosts.

    A claim above `highest` burns that epoch. One to run, above the present epoch, makes its host the holder: epochs are
    granted once, so that it is the later grant. What has ended by a fence is not learned again.
    """
    after = burn(lease, record.epoch)
    if record.claim in RUNS and record.epoch > max(after.epoch, after.ended):
        update: dict[str, object] = {"epoch": record.epoch, "host": host}
        if record.epoch == after.highest:
            update |= {"offered_to": None, "offer_id": None}
        after = after.model_copy(update=update)
    return after


def burn(lease: Lease, epoch: int) -> Lease:
    """Some host or target knows this epoch: it is never granted again.

    An offer of a lower one that still stands in a restored record was decided long ago.
    """
    if epoch <= lease.highest:
        return lease
    return lease.model_copy(update={"highest": epoch, "offered_to": None, "offer_id": None})


def retract(lease: Lease, epoch: int) -> Lease:
    """The epoch was granted to another host, by a later state of the database, and ours has given it up.

    So nobody known holds the lease, and the other host's journal will say that it does (`learn`). Idempotent.
    """
    if lease.epoch != epoch or epoch == 1:
        return lease
    return lease.model_copy(update={"epoch": epoch - 1, "ended": epoch - 1})
