"""Typed views on the journal: what a host remembers of its VMs, leases, pools and commands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from serai.core import lease as rules
from serai.host.journal import Journal
from serai.lib.ids import new_id
from serai.schema.commands.envelope import Reply
from serai.schema.commands.pool import OpenPool
from serai.schema.commands.vm import LaunchBody
from serai.schema.document import VmDocument
from serai.schema.encoding import to_dict
from serai.schema.errors import StaleError
from serai.schema.ids import HostName, Id, VmId
from serai.schema.launch import Launch
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.reports import ConfirmedClaim, Incarnation, StorePosition
from serai.schema.resource import Frozen
from serai.schema.vm import RestartPolicy, VmState

CLAIMS_KEPT = 8
"""Claims that are kept of one VM at the least."""
GONE_KEPT = 256
"""VMs whose final claims are kept after they left, or were deleted."""
FINAL = (Claim.ABANDONED, Claim.RELEASED)
COMMANDS_KEPT = 500
"""Answers kept for repeats of a command id; the controller repeats within minutes, not thousands of commands."""


class Incoming(Frozen):
    """A move to this host that is not decided yet."""

    offer_id: str
    epoch: int
    source: HostName
    port: int = 0
    """Where QEMU listens; 0 until it does."""


class Outgoing(Frozen):
    """A move from this host that is not decided yet."""

    offer_id: str
    epoch: int
    destination: HostName
    journal: Id
    """The destination's when the offer was made."""
    sent: bool = False
    """All state was sent: only the destination's journal may let this VM go on here."""


class VmRecord(Frozen):
    """All that is needed to run, restart or adopt a VM without a controller."""

    launch: Launch
    """What QEMU runs with, live changes included; of a VM that is down, what it starts with."""
    next_launch: Launch | None = None
    """What is wanted at the next start, where that differs from what QEMU runs with."""
    epoch: int
    restart: RestartPolicy
    autostart: bool
    autostart_order: int
    state: VmState
    reason: str = ""
    since: str = ""
    restarts: int = 0
    wanted: bool = True
    """It should run: false after a stop that was asked for, or the guest's own poweroff under its policy."""
    incoming: Incoming | None = None
    outgoing: Outgoing | None = None

    @property
    def moving(self) -> bool:
        """A move from or to this host is not decided yet."""
        return self.incoming is not None or self.outgoing is not None


def terms(body: LaunchBody) -> dict[str, Any]:
    """What a command says of how its VM runs, as fields of the VM's record."""
    return {name: getattr(body, name) for name in ("launch", "restart", "autostart", "autostart_order")}


class HostStore:
    """Reads and writes typed records; see host/journal.py for which are durable when."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._commands: deque[str] = deque(journal.all("command"))
        self._confirmed: dict[tuple[VmId, int], Claim] = {}
        """By VM and epoch: what the controller has confirmed to this agent."""

    async def durable(self) -> None:
        """Return once all that was put so far is on the disk. Raises HostError."""
        await self._journal.durable()

    # --- this agent ---

    def begin(self) -> Incarnation:
        """A new agent starts from this journal, which is told first; one that is new gets its id."""
        found = self._journal.get("agent", "incarnation") or {"journal": new_id(), "starts": 0}
        incarnation = Incarnation(journal=found["journal"], starts=found["starts"] + 1)
        self._journal.commit("agent", "incarnation", to_dict(incarnation))
        return incarnation

    def seen(self) -> StorePosition | None:
        """Where the controller's database stood at the newest command."""
        data = self._journal.get("agent", "seen")
        return None if data is None else StorePosition.model_validate(data)

    def note_seen(self, position: StorePosition) -> None:
        """Durable with the next claim, or with the next batch. Runs have no order here: the one that speaks counts."""
        before = self.seen()
        if before is None or before.run != position.run or before.sequence < position.sequence:
            self._journal.append("agent", "seen", to_dict(position))

    def boot(self) -> str | None:
        """The newest boot of this machine of which all is done that a reboot asks for."""
        return (self._journal.get("machine", "boot") or {}).get("id")

    def put_boot(self, boot: str) -> None:
        self._journal.append("machine", "boot", {"id": boot})

    # --- VMs ---

    def vm(self, vm: str) -> VmRecord | None:
        data = self._journal.get("vm", vm)
        return None if data is None else VmRecord.model_validate(data)

    def vms(self) -> dict[str, VmRecord]:
        return {key: VmRecord.model_validate(data) for key, data in self._journal.all("vm").items()}

    def put_vm(self, record: VmRecord) -> None:
        """Durable when it returns for a VM that is leaving: no reboot may start it here again as if it were not."""
        write = self._journal.append if record.outgoing is None else self._journal.commit
        write("vm", record.launch.vm, to_dict(record))

    def forget_vm(self, vm: str) -> None:
        self._journal.append("vm", vm, None)
        if self._journal.get("document", vm) is not None:
            self._journal.append("document", vm, None)

    def document(self, vm: str) -> VmDocument | None:
        data = self._journal.get("document", vm)
        return None if data is None else VmDocument.model_validate(data)

    def put_document(self, document: VmDocument | None) -> None:
        """Keep what is new; none: the one that is known stays."""
        if document is not None and (data := to_dict(document)) != self._journal.get("document", document.vm.id):
            self._journal.append("document", document.vm.id, data)

    # --- leases ---

    def confirm(self, claims: Iterable[ConfirmedClaim]) -> None:
        """The controller has written these: they are reported no more, until they change."""
        for one in claims:
            if self.claim(one.vm, one.epoch) is one.claim:
                self._confirmed[one.vm, one.epoch] = one.claim

    def unconfirmed(self) -> list[LeaseRecord]:
        """What the controller has yet to be told, as far as this agent knows."""
        return [row for row in self.leases() if self._confirmed.get((row.vm, row.epoch)) is not row.claim]

    def standing(self) -> list[LeaseRecord]:
        """Every claim that binds this host, and the newest of each VM: older ones say nothing that these do not."""
        newest = {row.vm: row.epoch for row in self.leases()}
        return [row for row in self.leases() if row.claim in rules.BINDS or row.epoch == newest[row.vm]]

    def leases(self, vm: str | None = None) -> list[LeaseRecord]:
        found = (LeaseRecord.model_validate(data) for data in self._journal.all("lease").values())
        return sorted((row for row in found if vm is None or row.vm == vm), key=lambda row: row.epoch)

    def claim(self, vm: str, epoch: int) -> Claim | None:
        data = self._journal.get("lease", f"{vm}/{epoch}")
        return None if data is None else LeaseRecord.model_validate(data).claim

    def put_claim(self, record: LeaseRecord) -> None:
        """The one place where a claim changes; durable when it returns. Raises StaleError if core.lease forbids it."""
        rules.step(self.claim(record.vm, record.epoch), record.claim)
        self._journal.commit("lease", f"{record.vm}/{record.epoch}", to_dict(record))

    def give_up(self, vm: VmId, epoch: int, reason: str) -> None:
        """`epoch` and all lower ones are over here: what may run is released, what is offered turned down."""
        for row in self.leases(vm):
            if row.epoch <= epoch and row.claim in rules.BINDS:
                over = Claim.RELEASED if row.claim in rules.RUNS else Claim.ABANDONED
                self.put_claim(row.model_copy(update={"claim": over, "reason": reason}))
        if self.claim(vm, epoch) is None:
            self.put_claim(LeaseRecord(vm=vm, epoch=epoch, claim=Claim.RELEASED, reason=reason))

    def check_not_over(self, launch: Launch, epoch: int) -> None:
        """Raise StaleError for an epoch that was given up here, or that a later one follows."""
        rows = [row for row in self.leases(launch.vm) if row.claim is not Claim.ABANDONED]
        if any(row.epoch > epoch or (row.epoch == epoch and row.claim is Claim.RELEASED) for row in rows):
            raise StaleError(f"epoch {epoch} of VM {launch.name} is over here", field="epoch", value=epoch)

    def may_run(self, vm: str) -> int | None:
        return rules.may_run(self.leases(vm))

    def prune_leases(self, vm: str) -> None:
        """Forget final claims far below the newest one, and those of VMs that left long ago: no command names them."""
        for row in self.leases(vm)[:-CLAIMS_KEPT]:
            if row.claim in FINAL:
                self._forget_claim(row)
        rows: dict[str, list[LeaseRecord]] = {}
        for row in self.leases():
            rows.setdefault(row.vm, []).append(row)
        present = self._journal.all("vm")
        gone = [name for name in self._oldest_first() if name not in present]
        over = [name for name in gone if all(row.claim in FINAL for row in rows[name])][:-GONE_KEPT]
        for name in over:
            for row in rows[name]:
                self._forget_claim(row)
            if self.generation(f"vm/{name}"):
                self._journal.append("generation", f"vm/{name}", None)

    def _oldest_first(self) -> list[str]:
        """The VMs of all claims, those first of which nothing was written for the longest time."""
        newest_last = reversed(dict.fromkeys(key.partition("/")[0] for key in reversed(self._journal.all("lease"))))
        return list(newest_last)

    def _forget_claim(self, row: LeaseRecord) -> None:
        self._confirmed.pop((row.vm, row.epoch), None)
        self._journal.append("lease", f"{row.vm}/{row.epoch}", None)

    # --- pools ---

    def pools(self) -> dict[str, OpenPool]:
        return {key: OpenPool.model_validate(data) for key, data in self._journal.all("pool").items()}

    def put_pool(self, pool: OpenPool) -> None:
        self._journal.append("pool", pool.pool, to_dict(pool))

    def forget_pool(self, pool: str) -> None:
        self._journal.append("pool", pool, None)

    # --- commands ---

    def answer(self, command: str) -> Reply | None:
        data = self._journal.get("command", command)
        return None if data is None else Reply.model_validate(data)

    def put_answer(self, command: str, reply: Reply) -> None:
        self._journal.append("command", command, to_dict(reply))
        self._commands.append(command)
        while len(self._commands) > COMMANDS_KEPT:
            self._journal.append("command", self._commands.popleft(), None)

    def generation(self, key: str) -> int:
        data = self._journal.get("generation", key)
        return 0 if data is None else int(data["generation"])

    def put_generation(self, key: str, generation: int) -> None:
        if generation > self.generation(key):
            self._journal.append("generation", key, {"generation": generation})
