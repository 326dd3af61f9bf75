"""Introductions: what an agent says of itself, and what follows for the rights to run VMs.

An agent introduces itself by its hello, and when it is asked to. At the controller's start all known hosts are asked:
nobody waits for their next hello.
"""

from __future__ import annotations

import logging

from serai.controller.commands import SendOptions
from serai.controller.hosts import observed
from serai.controller.hosts.documents import Documents
from serai.controller.hosts.gateway import Gateway
from serai.controller.hosts.presence import Presence
from serai.controller.services.rights import ALARM, Rights
from serai.controller.store import Store, Transaction, View
from serai.core import lease as rules
from serai.lib.ids import new_id
from serai.lib.tasks import Tasks
from serai.schema.commands.host import HOST_INTRODUCE, Introduce
from serai.schema.commands.migration import MIGRATION_ABANDON, AbandonMigration
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import ConflictError, SeraiError, UnavailableError
from serai.schema.host import Host, HostState
from serai.schema.ids import HostId, HostName
from serai.schema.lease import Claim, LeaseRecord
from serai.schema.reports import Introduction, LeaseEnd, Welcome

log = logging.getLogger(__name__)


class Introductions:
    """Takes in what agents say of themselves."""

    def __init__(
        self, store: Store, gateway: Gateway, presence: Presence, rights: Rights, documents: Documents
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._presence = presence
        self._rights = rights
        self._documents = documents
        self._contested: set[tuple[str, str]] = set()
        """Hosts, and the incarnations of theirs that were refused: an event for each is enough."""
        self._tasks = Tasks("introductions")

    async def start(self) -> None:
        """Ask all known hosts."""
        async with self._store.read() as view:
            hosts = await view.hosts.all()
        for host in hosts:
            self.ask(host.name)

    async def stop(self) -> None:
        """Ask no more."""
        await self._tasks.close()

    def ask(self, host: HostName) -> None:
        """Have a host introduce itself, unless it is being asked already."""
        name = f"introduce-{host}"
        if name not in self._tasks and not self._tasks.closed:
            self._tasks.start(self._ask(host), name)

    async def _ask(self, host: HostName) -> None:
        try:
            said = await self._gateway.send(HOST_INTRODUCE, host, Introduce(), SendOptions(id=new_id()))
            if said.host == host:
                await self.take(said, asked=True)
        except UnavailableError:
            log.info("host %s does not answer: it introduces itself when it is back", host)
        except SeraiError as error:
            log.warning("the introduction of host %s: %s", host, error)

    async def take(self, said: Introduction, *, asked: bool = False) -> Welcome:
        """Write what follows from it. Raises ConflictError for an agent that is not the host's.

        `asked`: the agent hears no answer; what it must give up is left to it as commands.
        """
        await self._refuse_strangers(said)
        async with self._store.transaction() as tx:
            known = await tx.hosts.named(said.host)
            fenced = known is not None and known.status.state is HostState.FENCED
            before = await tx.lineage.incarnation(said.host)
            if before != said.incarnation:
                await tx.lineage.accept(said.host, said.incarnation)
            host = await observed.greet(tx, said.host, said.facts, new_id(HostId))
            if said.seen is not None and not await tx.lineage.knows(said.seen):
                await self._rights.restored(tx, f"{said.host} knows a later state of it")
            await self._rights.report(tx, said.host, said.leases, fenced=fenced)
            if not fenced:
                await observed.write_not_held(tx, said)
            unknown = [] if fenced else await self._unknown(tx, said)
            over = await self._over(tx, said, unknown, fenced=fenced)
            strays = fenced and bool(said.strays)
            if fenced and not over and not strays:
                await observed.lift_fence(tx, host)
            if asked and not fenced:
                for record in over:
                    await _leave(tx, host, record)
            tx.on_commit(lambda: self._taken(said.host))
        for record in unknown:
            self._documents.read(said.host, record)
        ends = [_end(record) for record in over]
        return Welcome(host_id=host.id, time=self._store.clock.now(), give_up=ends, end_strays=strays)

    def _taken(self, host: HostName) -> None:
        self._presence.note(host)
        self._gateway.greeted(host)

    async def _refuse_strangers(self, said: Introduction) -> None:
        """An agent of another journal, or one that was copied: there would be two of one name."""
        async with self._store.read() as view:
            known, host = await view.lineage.incarnation(said.host), await view.hosts.named(said.host)
        if known is None or host is None:
            return
        new = said.incarnation
        if known.journal != new.journal:
            if host.status.state is HostState.FENCED:
                return
            why = f"its journal is {new.journal}, and that of {said.host} is {known.journal}: reinstalled or cloned"
            remedy = f"If the machine of the old journal is off or reinstalled: serai host fence {said.host} --is-off."
        elif new.starts < known.starts:
            why = f"it is at start {new.starts}, and {said.host} was at start {known.starts}: its state is a copy"
            remedy = "Stop one of the two agents."
        else:
            return
        text = f"an agent that calls itself {said.host} is refused: {why}"
        if (said.host, str(new)) not in self._contested:
            self._contested.add((said.host, str(new)))
            log.error("%s", text)
            async with self._store.transaction() as tx:
                facts = {"severity": ALARM, "incarnation": str(new)}
                await tx.emit("host.contested", f"host/{said.host}", host.id, text, **facts)
        raise ConflictError(text, field="incarnation", value=new, remedy=remedy)

    async def _unknown(self, tx: Transaction, said: Introduction) -> list[LeaseRecord]:
        """The highest claim of each VM that the host runs and the database does not know."""
        left = {one.key for one in await tx.leftovers.of_host(said.host)}
        found: dict[str, LeaseRecord] = {}
        for record in said.leases:
            if record.claim not in rules.RUNS or await tx.vms.seek(record.vm) is not None:
                continue
            if f"vm/{record.vm}" not in left and (record.vm not in found or found[record.vm].epoch < record.epoch):
                found[record.vm] = record
        return list(found.values())

    async def _over(
        self, view: View, said: Introduction, unknown: list[LeaseRecord], *, fenced: bool
    ) -> list[LeaseRecord]:
        """What the host must give up."""
        last = {(record.vm, record.epoch): record for record in said.leases}
        kept = {record.vm for record in unknown}
        return [
            record
            for record in last.values()
            if record.vm not in kept
            and rules.gives_up(await view.leases.get(record.vm), said.host, record, fenced=fenced)
        ]


def _end(record: LeaseRecord) -> LeaseEnd:
    # An offer may be committed before the answer is read: then it is not turned down, and the next hello says so.
    offer_id = record.offer_id if record.claim is Claim.OFFERED else None
    return LeaseEnd(vm=record.vm, epoch=record.epoch, offer_id=offer_id)


async def _leave(tx: Transaction, host: Host, record: LeaseRecord) -> None:
    what, why = f"VM {record.vm}", f"epoch {record.epoch} is over on {host.name}"
    if record.claim is Claim.OFFERED:
        offer = AbandonMigration(vm=record.vm, epoch=record.epoch, offer_id=record.offer_id or "", reason=why)
        await tx.leftovers.add(host.name, MIGRATION_ABANDON, offer, what, why)
    else:
        body = ReleaseVm(vm=record.vm, epoch=record.epoch, reason=why)
        await tx.leftovers.add(host.name, VM_RELEASE, body, what, why)
