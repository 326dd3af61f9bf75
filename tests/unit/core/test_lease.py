"""The lease as a model: whatever is lost, repeated or late, never two hosts run one VM."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serai.core import lease as rules
from serai.schema.errors import ConflictError, StaleError
from serai.schema.lease import Claim, LeaseRecord

VM = "0123456789ab"
HOSTS = ("h1", "h2", "h3")


class Moves(RuleBasedStateMachine):
    """A controller, three hosts with journals, and the QEMUs that they run.

    What is durable (the controller's lease, the journals) survives anything; what runs does not. A source sends its
    last state and then stays paused until it has read the destination's journal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lease = rules.first(VM, "h1")
        self.journals: dict[str, list[LeaseRecord]] = {host: [] for host in HOSTS}
        self.running: set[str] = {"h1"}
        self.sent: tuple[str, int, str] | None = None  # source, epoch, destination: paused, all sent
        self.loaded: tuple[str, int] | None = None  # destination that has all state, not committed
        self.offers = 0
        self._write("h1", 1, Claim.HELD)

    def _claim(self, host: str, epoch: int) -> Claim | None:
        return rules.claim_of(self.journals[host], epoch)

    def _write(self, host: str, epoch: int, claim: Claim) -> None:
        rules.step(self._claim(host, epoch), claim)
        self.journals[host].append(LeaseRecord(vm=VM, epoch=epoch, claim=claim))

    @property
    def offered(self) -> tuple[str, int] | None:
        return (self.lease.offered_to, self.lease.highest) if self.lease.offered_to else None

    @rule(to=st.sampled_from(HOSTS))
    def offer(self, to: str) -> None:
        try:
            self.lease = rules.offer(self.lease, to, f"offer{self.offers}")
            self.offers += 1
        except ConflictError:
            return

    @precondition(lambda self: self.offered is not None)
    @rule()
    def prepare(self) -> None:
        to, epoch = self.offered  # type: ignore[misc] # the precondition
        try:
            self._write(to, epoch, Claim.OFFERED)
        except StaleError:
            return

    @precondition(lambda self: self.offered is not None and self.sent is None)
    @rule()
    def send_last_state(self) -> None:
        to, epoch = self.offered  # type: ignore[misc] # the precondition
        source = self.lease.host
        if source in self.running and self._claim(to, epoch) is Claim.OFFERED:
            self.running.discard(source)
            self.sent = (source, epoch, to)
            self.loaded = (to, epoch)

    @precondition(lambda self: self.loaded is not None)
    @rule()
    def commit_and_cont(self) -> None:
        host, epoch = self.loaded  # type: ignore[misc] # the precondition
        self.loaded = None
        try:
            self._write(host, epoch, Claim.COMMITTED)
        except StaleError:
            return
        self.running.add(host)

    @precondition(lambda self: self.loaded is not None)
    @rule()
    def destination_qemu_dies(self) -> None:
        host, epoch = self.loaded  # type: ignore[misc] # the precondition
        self.loaded = None
        self._abandon(host, epoch)

    def _abandon(self, host: str, epoch: int) -> Claim:
        claim = self._claim(host, epoch)
        if claim in (Claim.COMMITTED, Claim.RELEASED):
            return Claim.COMMITTED
        if claim is not Claim.ABANDONED:
            # Its QEMU may have loaded all the same, and say so in a moment: only the journal stands in its way.
            self._write(host, epoch, Claim.ABANDONED)
        return Claim.ABANDONED

    @precondition(lambda self: self.sent is not None)
    @rule()
    def source_reads_the_journal(self) -> None:
        source, epoch, to = self.sent  # type: ignore[misc] # the precondition
        claim = self._claim(to, epoch)
        if claim is Claim.ABANDONED:
            self.sent = None
            self.running.add(source)
        elif claim in (Claim.COMMITTED, Claim.RELEASED):
            self.sent = None
            old = rules.may_run(self.journals[source])
            if old is not None and old < epoch:
                self._write(source, old, Claim.RELEASED)

    @precondition(lambda self: self.offered is not None)
    @rule()
    def controller_gives_up(self) -> None:
        to, epoch = self.offered  # type: ignore[misc] # the precondition
        if self._abandon(to, epoch) is Claim.ABANDONED:
            self.lease = rules.withdraw(self.lease, self.lease.offer_id or "")
        else:
            self.lease = rules.commit(self.lease, epoch, to)

    @rule(host=st.sampled_from(HOSTS), epoch=st.integers(1, 8))
    def a_report_of_a_commit(self, host: str, epoch: int) -> None:
        """Late, repeated or old: only what the journal says and what is on offer counts."""
        if self._claim(host, epoch) is Claim.COMMITTED:
            try:
                self.lease = rules.commit(self.lease, epoch, host)
            except StaleError:
                return

    @rule(host=st.sampled_from(HOSTS))
    def qemu_crashes_and_restarts_alone(self, host: str) -> None:
        """A host restarts its VM from its own journal, with no controller: only while it may, and not in mid-move."""
        if self.sent is not None and host in (self.sent[0], self.sent[2]):
            return
        self.running.discard(host)
        epoch = rules.may_run(self.journals[host])
        newest = max((record.epoch for record in self.journals[host]), default=0)
        if epoch is not None and epoch == newest:
            self.running.add(host)

    @precondition(lambda self: self.offered is None and self.sent is None and self.lease.host not in self.running)
    @rule(to=st.sampled_from(HOSTS))
    def starts_afresh(self, to: str) -> None:
        """A VM that is down starts on any host, its own too, once its holder has let go."""
        old = self.lease
        self._write(old.host, old.epoch, Claim.RELEASED)
        self.lease = rules.advance(old, to)
        assert self.lease.epoch > old.highest
        self._write(to, self.lease.epoch, Claim.HELD)
        self.running.add(to)

    @invariant()
    def never_two_copies(self) -> None:
        assert len(self.running) <= 1, self.running

    @invariant()
    def the_controllers_epoch_is_somebodys_claim(self) -> None:
        assert self._claim(self.lease.host, self.lease.epoch) in (Claim.HELD, Claim.COMMITTED, Claim.RELEASED)


Moves.TestCase.settings = settings(max_examples=500, stateful_step_count=60, deadline=None)
TestMoves = Moves.TestCase


def test_an_offer_is_made_once_and_an_epoch_is_never_offered_again() -> None:
    lease = rules.offer(rules.first(VM, "h1"), "h2", "a")
    assert rules.offer(lease, "h2", "a") == lease
    with pytest.raises(ConflictError):
        rules.offer(lease, "h3", "b")
    again = rules.offer(rules.withdraw(lease, "a"), "h2", "b")
    assert (lease.highest, again.highest) == (2, 3)
    with pytest.raises(StaleError):
        rules.commit(again, 2, "h2")
    committed = rules.commit(again, 3, "h2")
    assert (committed.host, committed.epoch, committed.offered_to) == ("h2", 3, None)
    assert rules.commit(committed, 3, "h2") == committed


def test_the_holder_cannot_be_offered_its_own_lease() -> None:
    with pytest.raises(ConflictError) as caught:
        rules.offer(rules.first(VM, "h1"), "h1", "a")
    assert (caught.value.info.field, caught.value.info.value) == ("to", "h1")


@pytest.mark.parametrize("final", [Claim.ABANDONED, Claim.RELEASED])
def test_final_claims_stay(final: Claim) -> None:
    for wanted in Claim:
        if wanted is not final:
            with pytest.raises(StaleError):
                rules.step(final, wanted)


def test_a_release_ends_lower_epochs_too() -> None:
    records = [
        LeaseRecord(vm=VM, epoch=1, claim=Claim.HELD),
        LeaseRecord(vm=VM, epoch=3, claim=Claim.COMMITTED),
        LeaseRecord(vm=VM, epoch=3, claim=Claim.RELEASED),
    ]
    assert rules.may_run(records) is None
    assert rules.may_run([*records, LeaseRecord(vm=VM, epoch=5, claim=Claim.HELD)]) == 5
