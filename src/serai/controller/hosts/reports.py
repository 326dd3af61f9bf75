"""Reports from hosts: read from the bus, written to the store if they say anything new (see `observed.py`)."""

from __future__ import annotations

import logging

from serai.controller.hosts import observed
from serai.controller.hosts.introductions import Introductions
from serai.controller.hosts.presence import Presence
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.lib.bus import Bus, Message, Subscription
from serai.schema.encoding import encode, parse
from serai.schema.errors import InvalidError
from serai.schema.host import Host, HostState
from serai.schema.lease import Claim
from serai.schema.reports import ConfirmedClaim, HostReport, Introduction, ReportReceipt
from serai.schema.subjects import Subjects
from serai.schema.vm import VmReport

log = logging.getLogger(__name__)

RECEIVED = b"{}"
"""The answer to a VM's report, for who asks for one."""


class Reports:
    """What all hosts say unasked."""

    def __init__(
        self, bus: Bus, store: Store, presence: Presence, rights: Rights, introductions: Introductions
    ) -> None:
        self._bus = bus
        self._store = store
        self._presence = presence
        self._rights = rights
        self._introductions = introductions
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Listen."""
        for subject, handler in (
            (Subjects.vm_report("*", "*"), self._on_vm_report),
            (Subjects.host_report("*"), self._on_host_report),
            (Subjects.hello("*"), self._on_hello),
        ):
            self._subscriptions.append(await self._bus.subscribe(subject, handler))

    async def stop(self) -> None:
        """Listen no more; the bus itself is left to its owner."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()

    async def _on_hello(self, message: Message) -> bytes:
        hello = parse(Introduction, message.payload, message.subject)
        if message.subject != Subjects.hello(hello.host):
            raise InvalidError("a hello on another host's subject", field="host", value=hello.host)
        return encode(await self._introductions.take(hello))

    async def _on_vm_report(self, message: Message) -> bytes:
        report = parse(VmReport, message.payload, message.subject)
        if message.subject != Subjects.vm_report(report.host, report.vm):
            raise InvalidError("a report on another host's or VM's subject", field="vm", value=report.vm)
        async with self._store.read() as view:
            host = await view.hosts.named(report.host)
            fresh = self._believes(host) and await observed.news(view, [report])
        if fresh:
            async with self._store.transaction() as tx:
                await observed.apply(tx, self._rights, report)
        return RECEIVED

    def _believes(self, host: Host | None) -> bool:
        """Whether a host's reports count: not before it has introduced itself, nor while it is fenced."""
        if host is None or host.status.state is HostState.FENCED:
            return False
        return self._rights.has_reported(host.name)

    async def _on_host_report(self, message: Message) -> bytes:
        report = parse(HostReport, message.payload, message.subject)
        if message.subject != Subjects.host_report(report.host):
            raise InvalidError("a report on another host's subject", field="host", value=report.host)
        known = True
        with self._presence.hearing(report.host):
            try:
                known = await self._take_host_report(report)
            finally:
                if known:
                    self._presence.note(report.host)
        return encode(ReportReceipt(confirmed=await self._confirmed(report) if known else [], introduce=not known))

    async def _confirmed(self, report: HostReport) -> list[ConfirmedClaim]:
        """What need not be reported again. A release is, as long as the record says that this host holds the lease."""
        found = []
        async with self._store.read() as view:
            for row in report.leases:
                held = await view.leases.get(row.vm) if row.claim is Claim.RELEASED else None
                if held is None or (held.host, held.epoch) != (report.host, row.epoch):
                    found.append(ConfirmedClaim(vm=row.vm, epoch=row.epoch, claim=row.claim))
        return found

    async def _take_host_report(self, report: HostReport) -> bool:
        """Write what it says that is new; False if it is not believed."""
        async with self._store.read() as view:
            host = await view.hosts.named(report.host)
            if host is None:
                # Its hello was to another controller's database.
                log.warning("host %s reports, but never said hello here", report.host)
                return False
            if not self._believes(host) or await view.lineage.incarnation(report.host) != report.incarnation:
                if host.status.state is not HostState.FENCED:
                    self._introductions.ask(report.host)
                return False
            said = [one for one in report.vms if one.host == report.host]
            fresh = await observed.news(view, said)
            concerned = await self._rights.concerned(view, report.host, report.leases)
            missing = await observed.unlisted(view, report)
            if await observed.never_reported(view, report):
                self._introductions.ask(report.host)
            known = {pool.id: pool for pool in await view.pools.on_host(report.host)}
        pools = [
            (known[pool_id], status)
            for pool_id, status in report.pools.items()
            if pool_id in known and observed.pool_changed(known[pool_id].status, status)
        ]
        returned = host.status.state is not HostState.ONLINE
        bridges = report.bridges if report.bridges != host.status.bridges else None
        if returned or fresh or concerned or missing or pools or bridges is not None:
            async with self._store.transaction() as tx:
                if returned:
                    await observed.back(tx, host)
                if concerned:
                    await self._rights.learn(tx, report.host, report.leases)
                for one in fresh:
                    await observed.apply(tx, self._rights, one)
                await observed.write_unlisted(tx, report)
                await observed.write_pools(tx, pools)
                if bridges is not None:
                    await observed.write_bridges(tx, host, bridges)
        return True
