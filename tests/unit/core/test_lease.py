"""The rules of the lease one by one. What they are for is in `test_moves.py`: never two hosts run one VM."""

from __future__ import annotations

import itertools

import pytest

from serai.core import grants
from serai.core import lease as rules
from serai.schema.errors import ConflictError, StaleError
from serai.schema.ids import HostName, VmId
from serai.schema.lease import Claim, LeaseRecord

VM = VmId("0123456789ab")


def test_an_offer_is_made_once_and_an_epoch_is_never_offered_again() -> None:
    lease = grants.offer(grants.first(VM, HostName("h1")), HostName("h2"), "a")
    assert grants.offer(lease, HostName("h2"), "a") == lease
    with pytest.raises(ConflictError):
        grants.offer(lease, HostName("h3"), "b")
    again = grants.offer(grants.withdraw(lease, "a"), HostName("h2"), "b")
    assert (lease.highest, again.highest) == (2, 3)
    with pytest.raises(StaleError):
        grants.commit(again, 2, HostName("h2"))
    committed = grants.commit(again, 3, HostName("h2"))
    assert (committed.host, committed.epoch, committed.offered_to) == ("h2", 3, None)
    assert grants.commit(committed, 3, HostName("h2")) == committed


def test_the_holder_cannot_be_offered_its_own_lease() -> None:
    with pytest.raises(ConflictError) as caught:
        grants.offer(grants.first(VM, HostName("h1")), HostName("h1"), "a")
    assert (caught.value.info.field, caught.value.info.value) == ("to", "h1")


STEPS = {
    (None, Claim.HELD),
    (None, Claim.OFFERED),
    (None, Claim.ABANDONED),
    (None, Claim.RELEASED),
    (Claim.OFFERED, Claim.COMMITTED),
    (Claim.OFFERED, Claim.ABANDONED),
    (Claim.HELD, Claim.RELEASED),
    (Claim.COMMITTED, Claim.RELEASED),
}


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product([None, *Claim], Claim)))
def test_the_steps_of_a_claim(current: Claim | None, wanted: Claim) -> None:
    """Those of `STEPS`, and repeats; what was abandoned or released stays so."""
    if current is wanted or (current, wanted) in STEPS:
        assert rules.step(current, wanted) is wanted
    else:
        with pytest.raises(StaleError, match=wanted):
            rules.step(current, wanted)


def test_a_release_ends_lower_epochs_too() -> None:
    records = [
        LeaseRecord(vm=VM, epoch=1, claim=Claim.HELD),
        LeaseRecord(vm=VM, epoch=3, claim=Claim.COMMITTED),
        LeaseRecord(vm=VM, epoch=3, claim=Claim.RELEASED),
    ]
    assert rules.may_run(records) is None
    assert rules.may_run([*records, LeaseRecord(vm=VM, epoch=5, claim=Claim.HELD)]) == 5


def test_a_grant_that_is_retracted_is_learned_from_whoever_has_it() -> None:
    one = grants.first(VM, HostName("h1"))
    two = grants.advance(one, one, HostName("h1"))
    lease = grants.advance(two, two, HostName("h1"))
    retracted = grants.retract(lease, 3)
    assert rules.is_over(retracted)
    assert (retracted.epoch, retracted.highest) == (2, 3)
    assert grants.retract(retracted, 3) == retracted
    learned = grants.learn(retracted, HostName("h2"), LeaseRecord(vm=VM, epoch=3, claim=Claim.HELD))
    assert (learned.host, learned.epoch, rules.is_over(learned)) == ("h2", 3, False)
    assert grants.advance(retracted, retracted, HostName("h1")).epoch == 4


@pytest.mark.parametrize("claim", sorted(rules.BINDS))
def test_all_is_over_on_a_fenced_host_but_the_present_lease(claim: Claim) -> None:
    lease = grants.first(VM, HostName("h1"))
    later = LeaseRecord(vm=VM, epoch=3, claim=claim, offer_id="a")
    assert rules.gives_up(lease, HostName("h3"), later, fenced=True)
    assert not rules.gives_up(lease, HostName("h1"), later.model_copy(update={"epoch": 1}), fenced=True)
    offered = grants.offer(lease, HostName("h3"), "a")
    assert rules.gives_up(offered, HostName("h3"), later.model_copy(update={"epoch": 2}), fenced=True)
