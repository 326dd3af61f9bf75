"""The lease: never two running copies of a VM.

Each VM has one lease: VM, epoch, host. The controller's record says who holds it and to whom the next epoch is offered;
each host's journal says what that host may do (`Claim`). A host runs a VM only under a claim that `may_run` allows.

The rules, as tables:

- Controller: an epoch is offered once, to one host; it is never offered again after it was withdrawn (`highest` only
  grows), so an old "yes" can never be mistaken for an answer to a newer offer.
- Host: `NEXT` lists every step that a claim may take. `ABANDONED` and `RELEASED` are final.

The shape follows what distributed storage calls fencing tokens (Gray and Cheriton's leases, 1989, with an epoch in
place of a time limit): time never decides here, because silence never means that a VM is dead.
"""

from __future__ import annotations

from collections.abc import Iterable

from serai.schema.errors import ConflictError, StaleError
from serai.schema.lease import Claim, Lease, LeaseRecord

NEXT: dict[Claim | None, frozenset[Claim]] = {
    # An offer may be turned down before the host has heard of it: `abandoned` first makes a late `offered` impossible.
    None: frozenset({Claim.HELD, Claim.OFFERED, Claim.ABANDONED, Claim.RELEASED}),
    Claim.OFFERED: frozenset({Claim.COMMITTED, Claim.ABANDONED}),
    Claim.HELD: frozenset({Claim.RELEASED}),
    Claim.COMMITTED: frozenset({Claim.RELEASED}),
    Claim.ABANDONED: frozenset(),
    Claim.RELEASED: frozenset(),
}

RUNS = frozenset({Claim.HELD, Claim.COMMITTED})


def first(vm: str, host: str) -> Lease:
    """The lease of a VM that is about to be started for the first time."""
    return Lease(vm=vm, epoch=1, host=host, highest=1)


def offer(lease: Lease, to: str, offer_id: str) -> Lease:
    """Epoch `highest + 1` may go to `to`. Raises ConflictError while another offer stands, or to the holder itself."""
    if lease.offered_to is not None:
        if lease.offer_id == offer_id and lease.offered_to == to:
            return lease
        raise ConflictError(
            f"the VM's lease is already offered to {lease.offered_to}",
            remedy="Wait for the move that is under way, or cancel its job.",
        )
    if to == lease.host:
        raise ConflictError(f"the VM's lease is already on {to}", field="to", value=to, remedy="Name another host.")
    return lease.model_copy(update={"offered_to": to, "offer_id": offer_id, "highest": lease.highest + 1})


def commit(lease: Lease, epoch: int, host: str) -> Lease:
    """The destination's journal says committed. Idempotent; raises StaleError for any epoch but the one on offer."""
    if lease.epoch == epoch and lease.host == host:
        return lease
    if lease.offered_to != host or lease.highest != epoch:
        raise StaleError(f"epoch {epoch} on {host} is not on offer (held: {lease.epoch} on {lease.host})")
    return lease.model_copy(update={"epoch": epoch, "host": host, "offered_to": None, "offer_id": None})


def withdraw(lease: Lease, offer_id: str) -> Lease:
    """The destination's journal says abandoned (and only then). `highest` stays, so the epoch is burnt. Idempotent."""
    if lease.offer_id != offer_id:
        return lease
    return lease.model_copy(update={"offered_to": None, "offer_id": None})


def advance(lease: Lease, host: str) -> Lease:
    """A fresh start, after the old holder's journal says released. Raises ConflictError during a move.

    On the same host too: it never runs a released epoch again.
    """
    if lease.offered_to is not None:
        raise ConflictError(
            f"the VM's lease is offered to {lease.offered_to}", remedy="Wait for the move that is under way."
        )
    return lease.model_copy(update={"epoch": lease.highest + 1, "highest": lease.highest + 1, "host": host})


def step(current: Claim | None, wanted: Claim) -> Claim:
    """One step of a host's claim on one epoch. Repeating the present claim is allowed; else `NEXT` decides.

    Raises StaleError, naming both claims.
    """
    if current == wanted:
        return wanted
    if wanted not in NEXT[current]:
        raise StaleError(f"a lease that is {current or 'unknown'} here cannot become {wanted}")
    return wanted


def claim_of(records: Iterable[LeaseRecord], epoch: int) -> Claim | None:
    """The last claim that a journal holds for one epoch of one VM."""
    found: Claim | None = None
    for record in records:
        if record.epoch == epoch:
            found = record.claim
    return found


def may_run(records: Iterable[LeaseRecord]) -> int | None:
    """The epoch under which a host may run the VM, by its own journal alone: the highest held or committed one.

    A released epoch ends all lower ones too: the VM has moved on.
    """
    last: dict[int, Claim] = {}
    for record in records:
        last[record.epoch] = record.claim
    released = max((epoch for epoch, claim in last.items() if claim is Claim.RELEASED), default=0)
    return max((epoch for epoch, claim in last.items() if claim in RUNS and epoch > released), default=None)
