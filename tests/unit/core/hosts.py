"""The hosts of the model: QEMUs, the stream between two of them, journals, and agents that may die.

`Qemu`, `Stream` and `Targets` are physics, as QEMU's migration code and iSCSI targets have it; they know no table.
`Host` is an agent that does what the tables of core.lifecycle, core.migration and core.lease say, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from serai.core import lease as rules
from serai.core.lifecycle import VmEvent, follow
from serai.core.migration import (
    DESTINATION,
    Act,
    DestinationEvent,
    DestinationPhase,
    SourceEvent,
    SourcePhase,
    resume_at,
    source_step,
)
from serai.schema.errors import ConflictError
from serai.schema.ids import VmId
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.vm import VmState

VM = VmId("0123456789ab")
CLAIMS = {
    DestinationPhase.PREPARED: Claim.OFFERED,
    DestinationPhase.COMMITTED: Claim.COMMITTED,
    DestinationPhase.ABANDONED: Claim.ABANDONED,
}
ENDS = ("completed", "failed", "cancelled")


@dataclass
class Stream:
    """The bytes of one move. `whole`: the last one was written. `cut`: what is not read yet never arrives."""

    whole: bool = False
    cut: bool = False


@dataclass
class Targets:
    """The VM's disks. Nobody writes to them under an epoch that they refuse, and an epoch is admitted for one host."""

    refused: int = 0
    admitted: dict[int, str] = field(default_factory=dict)

    def admit(self, epoch: int, host: str) -> bool:
        """False for an epoch that was granted to another host: whoever grants it again has an old database."""
        return epoch > self.refused and self.admitted.setdefault(epoch, host) == host

    def refuse(self, epoch: int) -> None:
        """This epoch and all lower ones."""
        self.refused = max(self.refused, epoch)


@dataclass
class Qemu:
    """One process. `events` are statuses of its migration that nobody has been told of yet."""

    vcpus: bool = False
    status: str = "none"
    stream: Stream | None = None
    receives: bool = False
    continued: bool = False
    events: list[str] = field(default_factory=list)

    def _is(self, status: str) -> None:
        self.status = status
        self.events.append(status)

    def migrate(self, stream: Stream) -> None:
        self.stream = stream
        self.continued = self.receives = False
        self._is("setup")

    def migrate_continue(self) -> None:
        """The migration's thread goes on a little later."""
        self.continued = self.status == "pre-switchover"

    def migrate_cancel(self) -> None:
        if self.status in ("setup", "active", "pre-switchover", "device"):
            self._is("cancelling")

    def gives_up(self, how: str) -> None:
        """The VM goes on here, whatever was written."""
        self._is(how)
        self.vcpus = True

    def step(self) -> bool:
        """What QEMU does by itself; whether there was anything to do."""
        stream = self.stream
        if stream is None or self.status in ENDS:
            return False
        if self.receives:
            if stream.cut or stream.whole:
                self._is("failed" if stream.cut else "completed")
                return True
            return False
        return self._send(stream)

    def _send(self, stream: Stream) -> bool:
        if self.status == "cancelling":
            self.gives_up("cancelled")
        elif stream.cut and not stream.whole:
            self.gives_up("failed")
        elif self.status == "setup":
            self._is("active")
        elif self.status == "active":
            self.vcpus = False
            self._is("pre-switchover")
        elif self.status == "pre-switchover":
            if not self.continued:
                return False
            self._is("device")
        elif not stream.whole:
            stream.whole = True
        else:
            self._is("completed")
        return True


@dataclass(frozen=True)
class Move:
    """One offer. `journal`: the destination's, which alone can decide it."""

    epoch: int
    source: str
    to: str
    journal: int = 0


@dataclass(frozen=True)
class Record:
    """What a host's journal holds of the VM beside its claims."""

    epoch: int
    state: VmState
    reason: str = ""
    outgoing: Move | None = None
    incoming: Move | None = None


class Host:
    """`claims` (every one ever written), `record` and `seen` last, as long as the journal does.

    `journal` numbers the host's journals; `seen` is the highest position of the controller's database that it knows.
    What the agent has in mind goes with the agent.
    """

    def __init__(self, name: str, targets: Targets) -> None:
        self.name = name
        self.targets = targets
        self.journal = 1
        self.claims: list[LeaseRecord] = []
        self.record: Record | None = None
        self.seen: tuple[int, int] = (0, 0)
        self.qemu: Qemu | None = None
        self.epoch = 0
        """Of the QEMU that is there, whatever the journal knows."""
        self.port = False
        self.up = True
        self._forget()

    def _forget(self) -> None:
        self.source: SourcePhase | None = None
        self.destination: DestinationPhase | None = None
        self.inbox: list[SourceEvent | DestinationEvent] = []
        self.asking = False

    # --- the journal ---

    def claim(self, epoch: int) -> Claim | None:
        return rules.claim_of(self.claims, epoch)

    def write(self, epoch: int, claim: Claim) -> None:
        """Raises StaleError for what core.lease forbids."""
        rules.step(self.claim(epoch), claim)
        if self.claim(epoch) is not claim:
            self.claims.append(LeaseRecord(vm=VM, epoch=epoch, claim=claim))

    def tell(self, event: VmEvent, reason: str, outgoing: Move | None = None) -> None:
        assert self.record is not None
        state = follow(self.record.state, event, "web1")
        self.record = replace(self.record, state=state, reason=reason, outgoing=outgoing, incoming=None)

    @property
    def runs(self) -> bool:
        """Its vCPUs run, and its disks are open to it."""
        return self.qemu is not None and self.qemu.vcpus and self.epoch > self.targets.refused

    # --- starts and ends ---

    def start(self, epoch: int) -> None:
        """From disk, under a claim of this journal."""
        state = self.record.state if self.record is not None else VmState.DEFINED
        self.record = Record(epoch, follow(follow(state, VmEvent.START, "web1"), VmEvent.RUNS, "web1"))
        self.qemu, self.epoch, self.port = Qemu(vcpus=True), epoch, True

    def may_restart(self) -> bool:
        record = self.record
        runs = record is not None and record.state is VmState.CRASHED and rules.may_run(self.claims) == record.epoch
        return runs and record is not None and record.epoch > self.targets.refused

    def kill_qemu(self) -> None:
        """kill -9: what it had not written yet never comes."""
        assert self.qemu is not None
        if self.qemu.stream is not None and not self.qemu.stream.whole:
            self.qemu.stream.cut = True
        self.qemu = None
        if self.up:
            self._qemu_ended()

    def _qemu_ended(self) -> None:
        if self.source is not None:
            self.inbox.append(SourceEvent.QEMU_ENDED)
        elif self.destination is DestinationPhase.PREPARED:
            self.inbox.append(DestinationEvent.QEMU_ENDED)
        elif self.record is not None and self.record.state not in (VmState.CRASHED, VmState.STOPPED):
            self.tell(VmEvent.CRASHED, "QEMU was killed")

    def clear(self) -> None:
        """The VM is none of this host's."""
        if self.qemu is not None and self.qemu.stream is not None and self.qemu.receives:
            self.qemu.stream.cut = True
        self.record = self.qemu = None
        self._forget()

    def release(self, epoch: int) -> None:
        """Ends its QEMU, and gives up this epoch and all lower ones."""
        if self.record is not None and self.record.epoch <= epoch:
            self.clear()
        for old in {row.epoch for row in self.claims if row.epoch <= epoch}:
            if self.claim(old) in rules.RUNS:
                self.write(old, Claim.RELEASED)

    # --- source ---

    def may_leave(self, move: Move) -> bool:
        """Whether the VM runs here, this offer is the next epoch, and it was not turned down here."""
        record = self.record
        if not self.up or self.qemu is None or record is None or record.state is not VmState.RUNNING:
            return False
        below = record.epoch == rules.may_run(self.claims) and record.epoch < move.epoch
        return below and self.claim(move.epoch) is None

    def never_sends(self, move: Move) -> bool:
        """Promise, durably, that the last state of this offer is never sent; False if it may have been."""
        record = self.record
        if record is not None and record.outgoing == move:
            return False
        if self.claim(move.epoch) is None:
            self.write(move.epoch, Claim.ABANDONED)
        return self.claim(move.epoch) is Claim.ABANDONED

    def leave(self, move: Move, stream: Stream) -> None:
        assert self.may_leave(move)
        assert self.qemu is not None
        self.tell(VmEvent.MIGRATE, "", outgoing=move)
        self.source = SourcePhase.SETUP
        self.qemu.events.clear()
        self.qemu.migrate(stream)

    def take(self, event: SourceEvent) -> None:
        """One event of the move away."""
        if self.source is None:
            return
        try:
            self.source, acts = source_step(self.source, event)
        except ConflictError:
            return
        for act in acts:
            self._do(act)
        if self.source is SourcePhase.DONE:
            assert self.record is not None
            self.release(self.record.epoch)
        elif self.source is SourcePhase.STAYED:
            self._forget()
            if self.qemu is None:
                self.tell(VmEvent.CRASHED, "QEMU ended on the move")
            else:
                self.tell(VmEvent.MIGRATE_ENDED, "stayed")
                self.qemu.vcpus = self.port = True  # whatever the table did: it is to run here now

    def _do(self, act: Act) -> None:
        if act is Act.ASK_VERDICT:
            self.asking = True
        elif self.qemu is None:
            return  # QMP does not answer
        elif act is Act.CONTINUE:
            self.qemu.migrate_continue()
        elif act is Act.CANCEL:
            self.qemu.migrate_cancel()
        elif act is Act.CONT:
            self.qemu.vcpus = True
        else:
            self.port = act is Act.OPEN_PORT

    # --- destination ---

    def prepare(self, move: Move, stream: Stream) -> None:
        """Raises StaleError for an offer that was turned down before."""
        self.write(move.epoch, Claim.OFFERED)
        self.record = Record(move.epoch, follow(VmState.DEFINED, VmEvent.INCOMING, "web1"), incoming=move)
        self.qemu, self.epoch, self.port = Qemu(stream=stream, receives=True), move.epoch, False
        self.destination = DestinationPhase.PREPARED

    def decide(self, event: DestinationEvent) -> None:
        """One event of the move here; what it decides is durable before anything is done."""
        if self.destination is None or self.record is None:
            return
        before, self.destination = self.destination, DESTINATION[self.destination, event]
        if self.destination is before:
            return
        self.write(self.record.epoch, CLAIMS[self.destination])

    def arrive(self) -> bool:
        """What was decided: run, or be cleared away. Whether there was anything to do."""
        record = self.record
        if self.destination is DestinationPhase.ABANDONED:
            self.clear()
            return True
        if record is None or record.incoming is None or self.claim(record.epoch) is not Claim.COMMITTED:
            return False
        self.tell(VmEvent.ARRIVED, "arrived")
        self._forget()
        if self.qemu is None:
            self.tell(VmEvent.CRASHED, "QEMU was killed after the commit")
        else:
            self.qemu.vcpus = self.port = True
        return True

    def verdict(self, epoch: int, journal: int, *, turn_down: bool) -> Claim:
        """What this journal says of an offer; what it does not know it turns down, for ever.

        One that was made to another journal of this host is not this one's to decide.
        """
        if journal != self.journal:
            return Claim.OFFERED
        if any(row.epoch > epoch and row.claim in rules.RUNS for row in self._last_claims()):
            return Claim.COMMITTED  # decided long ago: who asks only now must not run
        if self.destination is not None and self.record is not None and self.record.epoch == epoch:
            if turn_down:
                self.decide(DestinationEvent.TURN_DOWN)
            return self.claim(epoch) or Claim.OFFERED
        if self.claim(epoch) in (Claim.COMMITTED, Claim.HELD, Claim.RELEASED):
            return Claim.COMMITTED
        self.write(epoch, Claim.ABANDONED)
        return Claim.ABANDONED

    def _last_claims(self) -> list[LeaseRecord]:
        return list({row.epoch: row for row in self.claims}.values())

    # --- the agent ---

    def lose_journal(self) -> None:
        """The machine was installed again, or its disk was replaced; its QEMU may even run on."""
        self.kill_agent()
        self.claims, self.record, self.seen = [], None, (0, 0)
        self.journal += 1

    def give_up_strays(self) -> None:
        """End a QEMU that no record knows."""
        if self.record is None:
            self.clear()

    def kill_agent(self) -> None:
        self.up = False
        self._forget()

    def start_agent(self) -> None:
        """It takes up what the journal says, by what QEMU says."""
        self.up = True
        record, qemu = self.record, self.qemu
        if qemu is not None:
            qemu.events.clear()
        if record is None:
            return
        if record.outgoing is not None:
            if qemu is None:
                self.source, self.asking = SourcePhase.SENT, True
            else:
                self.source, event = resume_at(qemu.status, running=qemu.vcpus)
                self.inbox.append(event)
        elif record.incoming is not None:
            self.destination = {claim: phase for phase, claim in CLAIMS.items()}[
                self.claim(record.epoch) or Claim.OFFERED
            ]
            if self.destination is DestinationPhase.PREPARED:
                self._look()
        elif qemu is None:
            self._qemu_ended()

    def _look(self) -> None:
        """What QEMU did while nobody watched."""
        if self.qemu is None:
            self._qemu_ended()
        elif self.qemu.status in ENDS:
            self.inbox.append(_incoming(self.qemu.status))

    def hear(self) -> bool:
        """What waits, or else QEMU's next event; whether there was anything."""
        if not self.up:
            return False
        if self.inbox:
            event = self.inbox.pop(0)
            if isinstance(event, SourceEvent):
                self.take(event)
            elif event is not DestinationEvent.LOADED or self.qemu is not None:
                self.decide(event)
            return True
        if self.qemu is None or not self.qemu.events:
            return False
        status = self.qemu.events.pop(0)
        if self.source is not None:
            self.inbox.append(SourceEvent(status))
        elif self.destination is not None:
            self.inbox.append(_incoming(status))
        return True


def _incoming(status: str) -> DestinationEvent:
    return DestinationEvent.LOADED if status == "completed" else DestinationEvent.QEMU_FAILED
