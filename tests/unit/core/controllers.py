"""The controller of the model: the lease, one job at a time, what hosts have told, and a database with a backup.

It does what core.lease says, and nothing else. `Position` is where a host or the database stands: a run of a
controller, and a number that grows with each change of the lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from serai.core import grants
from serai.core import lease as rules
from serai.core.migration import DestinationPhase, SourceEvent
from serai.schema.errors import ConflictError, StaleError
from serai.schema.ids import HostName
from serai.schema.lease import Claim, Lease, LeaseRecord
from serai.schema.vm import VmState

from .hosts import VM, Host, Move, Stream, Targets

Position = tuple[int, int]


@dataclass(frozen=True)
class Database:
    """What a backup holds. `runs`: of each run of a controller its number, and the sequence at its begin."""

    lease: Lease
    move: Move | None = None
    begun: bool = False
    sequence: int = 0
    runs: tuple[Position, ...] = ((1, 0),)
    journals: tuple[tuple[str, int], ...] = ()
    fenced: frozenset[str] = frozenset()
    restored: bool = False

    def knows(self, seen: Position) -> bool:
        """Whether a position that a host has seen is one of this database's past."""
        run, sequence = seen
        numbers = [number for number, _ in self.runs]
        if run == 0:
            return True
        if run not in numbers:
            return False
        after = numbers.index(run) + 1
        end = self.runs[after][1] if after < len(self.runs) else self.sequence
        return sequence <= end


class Controller:
    """`db` is durable; `reported` and `proven` (epochs that their holders confirmed) go with each run."""

    def __init__(self, hosts: Mapping[str, Host], targets: Targets) -> None:
        self.hosts = hosts
        self.targets = targets
        journals = tuple((name, host.journal) for name, host in hosts.items())
        self.db = Database(grants.first(VM, HostName("h1")), journals=journals)
        self.backup = self.db
        self.reported = set(hosts)
        self.proven = {1}
        targets.admit(1, "h1")
        self.streams: dict[Move, Stream] = {}
        self.offers: list[Move] = []
        self._runs = 1

    @property
    def lease(self) -> Lease:
        return self.db.lease

    @property
    def move(self) -> Move | None:
        return self.db.move

    def save(self, lease: Lease, **changes: object) -> None:
        """One transaction."""
        sequence = self.db.sequence + (lease != self.db.lease)
        self.db = replace(self.db, lease=lease, sequence=sequence, **changes)  # type: ignore[arg-type] # fields of Database

    def tells(self, host: Host) -> bool:
        """A command reaches the agent: it is up, and the one that is known. It journals where the database stands."""
        if not host.up or (host.name, host.journal) not in self.db.journals or host.name in self.db.fenced:
            return False
        if host.name not in self.reported:
            self.introduces(host)
            return False
        host.seen = (self._runs, self.db.sequence)
        return True

    # --- what hosts tell ---

    def introduces(self, host: Host) -> bool:
        """An agent tells all that its journal holds; whether that is news."""
        if not host.up:
            return False
        before = self.db, set(self.reported)
        name = host.name
        if (name, host.journal) not in self.db.journals:
            if name not in self.db.fenced:
                return False  # refused: cloned or installed again, nobody knows
            others = tuple(row for row in self.db.journals if row[0] != name)
            self.save(self.lease, journals=(*others, (name, host.journal)))
        if not self.db.knows(host.seen):
            self.save(self.lease, restored=True)
        lease = self.lease
        for row in {row.epoch: row for row in host.claims}.values():
            fenced = name in self.db.fenced
            lease = grants.burn(lease, row.epoch) if fenced else grants.learn(lease, HostName(name), row)
        self.save(lease)
        if name not in self.db.fenced and lease.host == name and rules.claim_of(host.claims, lease.epoch) in rules.RUNS:
            self.proven.add(lease.epoch)
        if self._gives_up(host):
            self.save(self.lease, fenced=self.db.fenced - {name})
        self.reported.add(name)
        self._may_be_complete()
        return before != (self.db, self.reported)

    def _gives_up(self, host: Host) -> bool:
        """A host lets go of all that is not its any more; whether nothing is left."""
        for row in self._over(host):
            if row.claim is Claim.OFFERED:
                host.verdict(row.epoch, host.journal, turn_down=True)
                host.arrive()
            else:
                host.release(row.epoch)
        if host.name in self.db.fenced:
            host.give_up_strays()
        return not self._over(host)

    def _over(self, host: Host) -> list[LeaseRecord]:
        last = {row.epoch: row for row in host.claims}
        name, fenced = HostName(host.name), host.name in self.db.fenced
        return [row for row in last.values() if rules.gives_up(self.lease, name, row, fenced=fenced)]

    def heard(self) -> grants.Heard:
        proven = self.lease.epoch in self.proven
        return grants.Heard(tuple(self.hosts), self.reported, self.db.fenced, proven, self.db.restored)

    # --- the job ---

    def offer(self, to: str) -> None:
        holder = self.hosts[self.lease.host]
        if self.move is not None or holder.record is None or holder.record.state is not VmState.RUNNING:
            return
        if self.hosts[to].name in self.db.fenced or grants.waits_for(self.lease, self.heard()):
            return
        try:
            lease = grants.offer(self.lease, HostName(to), f"offer{len(self.offers)}")
        except ConflictError:
            assert to == self.lease.host or rules.is_over(self.lease) or self.lease.offered_to is not None
            return
        journal = dict(self.db.journals)[to]
        move = Move(lease.highest, lease.host, to, journal)
        self.save(lease, move=move, begun=False)
        self.streams[move] = Stream()
        self.offers.append(move)

    def prepares(self) -> bool:
        move = self.move
        if move is None or self.db.begun:
            return False
        destination = self.hosts[move.to]
        if destination.record is not None or destination.qemu is not None or not self.tells(destination):
            return False
        if not self.targets.admit(move.epoch, move.to):
            self._epoch_is_taken(move=None)
            return True
        try:
            destination.prepare(move, self.streams[move])
        except StaleError:
            assert destination.claim(move.epoch) is not None
            return False
        return True

    def begins(self) -> bool:
        move = self.move
        if move is None or self.db.begun:
            return False
        source, destination = self.hosts[move.source], self.hosts[move.to]
        ready = destination.destination is DestinationPhase.PREPARED and destination.record is not None
        if not ready or destination.record is None or destination.record.incoming != move:
            return False
        if not source.may_leave(move) or not self.tells(source):
            return False
        self.save(self.lease, begun=True)
        source.leave(move, self.streams[move])
        return True

    def concludes(self) -> bool:
        """The source is through with it, one way or the other: so is the job."""
        move = self.move
        if move is None or not self.db.begun or not self.tells(self.hosts[move.source]):
            return False
        record = self.hosts[move.source].record
        if record is not None and record.outgoing is not None:
            return False
        return self.gives_up_or_commits()

    def gives_up_or_commits(self) -> bool:
        """The end of the job: by the destination's journal, by the source's promise, or by a fence."""
        move = self.move
        if move is None:
            return False
        source, destination = self.hosts[move.source], self.hosts[move.to]
        if self.tells(destination):
            claim = destination.verdict(move.epoch, move.journal, turn_down=True)
            if claim is Claim.COMMITTED:
                self._settle(move)
                return True
            if claim is Claim.ABANDONED:
                self.save(self._withdrawn(), move=None)
                return True
        if self.tells(source) and source.never_sends(move):
            self.save(self._withdrawn(), move=None)
            return True
        gone = (move.to, move.journal) not in self.db.journals  # a fence has let a new journal take its place
        if gone or move.to in self.db.fenced:
            return self._ends_by_fence(move, source)
        return False

    def _withdrawn(self) -> Lease:
        return grants.withdraw(self.lease, self.lease.offer_id or "")

    def _settle(self, move: Move) -> None:
        """Committed; what is left on a source that does not answer is cleared later."""
        try:
            self.save(grants.commit(self.lease, move.epoch, HostName(move.to)), move=None)
            self.proven.add(move.epoch)
        except StaleError:
            assert self.lease.highest > move.epoch or self.lease.ended >= move.epoch
            self.save(self.lease, move=None)
        self.targets.refuse(move.epoch - 1)
        if self.tells(self.hosts[move.source]):
            self.hosts[move.source].release(move.epoch - 1)

    def _ends_by_fence(self, move: Move, source: Host) -> bool:
        """Nobody knows whether the destination committed: the waiting memory must never go on."""
        if move.source not in self.db.fenced:
            if not self.tells(source):
                return False
            source.release(move.epoch)
        self.save(grants.end_move(self.lease, self.lease.offer_id or ""), move=None)
        return True

    # --- starts and the fence ---

    def starts(self, to: str) -> None:
        """A VM that is down starts anywhere."""
        lease = self.lease
        host, holder = self.hosts[to], self.hosts[lease.host]
        if self.move is not None or grants.waits_for(lease, self.heard()) or not self.tells(host):
            return
        if not rules.is_over(lease):
            down = holder.record is None or holder.record.state is VmState.CRASHED
            if not down or not self.tells(holder):
                return
            holder.release(lease.highest)
        if host.record is not None or host.qemu is not None:
            return  # what an earlier job left there is cleared first
        if not self.targets.admit(lease.highest + 1, to):
            self._epoch_is_taken()
            self.starts(to)
            return
        self.targets.refuse(lease.highest)
        self.save(grants.advance(self.lease, lease, HostName(to)))
        self.proven.add(self.lease.epoch)
        assert self.lease.epoch > lease.highest
        assert host.claim(self.lease.epoch) is None
        host.write(self.lease.epoch, Claim.HELD)
        host.start(self.lease.epoch)

    def _epoch_is_taken(self, **changes: object) -> None:
        """A target has admitted it for another host: the database is older than that."""
        self.save(grants.burn(self._withdrawn(), max(self.targets.admitted)), restored=True, **changes)
        self._may_be_complete()

    def _may_be_complete(self) -> None:
        if self.db.restored and not set(self.hosts) - self.reported - self.db.fenced:
            self.save(self.lease, restored=False)

    def stops_by_force(self) -> None:
        """Somebody gives up a VM that waits for a word that nobody can give any more."""
        holder = self.hosts[self.lease.host]
        if self.tells(holder):
            holder.release(self.lease.highest)

    def fence(self, name: str) -> None:
        """The operator's word."""
        self.save(grants.end(self.lease, HostName(name)), fenced=self.db.fenced | {name})

    # --- the database ---

    def restarts(self) -> None:
        """A new run: nobody has reported to it."""
        self._runs += 1
        self.db = replace(self.db, runs=(*self.db.runs, (self._runs, self.db.sequence)))
        self.reported, self.proven = set(), set()

    def restores(self) -> None:
        """The backup takes the place of the database."""
        self.db = self.backup
        self.restarts()

    def asks(self, source: Host) -> bool:
        """A source that has sent all asks the destination's journal, for as long as it takes."""
        if not source.asking or source.record is None or source.record.outgoing is None:
            return False
        move = source.record.outgoing
        if not source.up or not self.hosts[move.to].up:
            return False
        claim = self.hosts[move.to].verdict(move.epoch, move.journal, turn_down=False)
        if claim is Claim.OFFERED:
            return False
        source.asking = False
        source.inbox.append(SourceEvent.COMMITTED if claim is Claim.COMMITTED else SourceEvent.ABANDONED)
        return True
