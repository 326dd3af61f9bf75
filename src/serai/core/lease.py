"""The lease: never two running copies of a VM.

Each VM has one lease: VM, epoch, host. The controller's record says who holds it and to whom the next epoch is offered
(`grants.py` has the rules that change it); each host's journal says what that host may do (`Claim`). A host runs a VM
only under a claim that `may_run` allows. `NEXT` lists every step that a claim may take; `ABANDONED` and `RELEASED` are
final.

The shape follows what distributed storage calls fencing tokens (Gray and Cheriton's leases, 1989, with an epoch in
place of a time limit): time never decides here, because silence never means that a VM is dead.
"""

from __future__ import annotations

from collections.abc import Iterable

from serai.schema.errors import ConflictError, StaleError
from serai.schema.ids import HostName
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
BINDS = RUNS | {Claim.OFFERED}
"""Claims under which a host runs a VM, or may come to run it."""


def is_over(lease: Lease) -> bool:
    """Whether the present epoch has ended by a fence: nobody holds the lease until it advances."""
    return lease.epoch <= lease.ended


def at_rest(lease: Lease, name: str) -> Lease:
    """The lease of the VM of that name. Raises ConflictError while it is offered to another host."""
    if lease.offered_to is not None:
        raise ConflictError(f"VM {name} is on the move", field="vm", value=name, remedy="Wait until it has arrived.")
    return lease


def gives_up(lease: Lease | None, host: HostName, record: LeaseRecord, *, fenced: bool = False) -> bool:
    """Whether a host must give up a claim: its epoch has ended, is another host's, or is below the present one.

    `lease` none: no VM of that id is known, and nothing is to run. `fenced`: an operator has said that the host is off,
    and others may have started what it ran: all is over there but the present lease itself.
    """
    if record.claim not in BINDS:
        return False
    if fenced and lease is not None and (record.epoch, host) != (lease.epoch, lease.host):
        return True
    if lease is None or record.epoch <= lease.ended or record.epoch < lease.epoch:
        return True
    if record.epoch == lease.epoch:
        return host != lease.host
    return record.claim is Claim.OFFERED and (lease.offered_to != host or lease.highest != record.epoch)


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
