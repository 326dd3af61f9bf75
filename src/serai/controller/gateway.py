"""The controller's end of the bus: commands out, reports in.

A request is repeated with the same id until there is an answer: `running` and silence both mean "ask again". The sender
gives up after `patience` seconds of silence, counted from the last answer; silence never means that the command was not
carried out. A host's hello may mean that its agent was restarted and forgot what it was asked: the request is repeated
at once.

A command for a VM goes to the host that holds the VM's lease, and to no other: the lease is read before each attempt,
and once it is another's the command is given up. (The host looks at its own journal besides.)
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from serai.controller import reports
from serai.controller.commands import SendOptions, Target, VmTarget
from serai.controller.store import Store, StoreUnavailableError
from serai.lib.bus import Bus, Message, Subscription
from serai.lib.clock import Clock, SystemClock
from serai.lib.ids import new_id
from serai.lib.tasks import Tasks
from serai.schema.commands.base import BodyT, Command, ReplyT
from serai.schema.commands.envelope import HOLD, CommandProgress, Reply, Request
from serai.schema.encoding import encode, invalid, to_dict
from serai.schema.errors import (
    ConflictError,
    ErrorInfo,
    InvalidError,
    SeraiError,
    UnauthorizedError,
    UnavailableError,
    from_info,
)
from serai.schema.host import HostState
from serai.schema.ids import HostId, HostName
from serai.schema.reports import Hello, HostReport, Welcome
from serai.schema.subjects import Subjects
from serai.schema.ticket import RedeemTicket
from serai.schema.vm import VmReport

log = logging.getLogger(__name__)

ASK = HOLD + 5.0
"""Seconds for one request: the receiver answers within HOLD."""
PAUSE_FIRST = 0.1
PAUSE_MOST = 1.0
"""Seconds between two attempts to reach somebody who does not answer."""
SILENCE = 15.0
"""Seconds without a report after which a host counts as offline: three of its periods."""
LOOK = 1.0
RECEIVED = b"{}"
"""The answer to a report, for who asks for one."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class Hosts:
    """All hosts, over the bus."""

    def __init__(self, bus: Bus, store: Store, clock: Clock | None = None, *, silence: float = SILENCE) -> None:
        self._bus = bus
        self._store = store
        self._clock = clock or SystemClock()
        self._silence = silence
        self._seen: dict[HostName, float] = {}
        self._heard: dict[HostName, datetime] = {}
        """By host: when it spoke last. Kept here: a write for each report would be for this alone."""
        self._hearing: Counter[str] = Counter()
        """By host: its reports that are being written. One that waits for the database is not silent."""
        self._sent: dict[str, tuple[str, SendOptions]] = {}
        """By request: the host that was asked, whose progress alone counts, and who listens."""
        self._hellos: dict[str, asyncio.Event] = {}
        """By host that is being asked: set at its next hello."""
        self._subscriptions: list[Subscription] = []
        self._tasks = Tasks("gateway")

    async def start(self) -> None:
        """Listen, and watch who falls silent. Hosts known as online get a full period to speak up."""
        async with self._store.read() as view:
            for host in await view.hosts.all(view.hosts.table.c.state == HostState.ONLINE.value):
                self._seen[host.name] = self._clock.monotonic()
        for subject, handler in (
            (Subjects.progress("*", "*"), self._on_progress),
            (Subjects.vm_report("*", "*"), self._on_vm_report),
            (Subjects.host_report("*"), self._on_host_report),
            (Subjects.redeem("*"), self._on_redeem),
            (Subjects.hello("*"), self._on_hello),
        ):
            self._subscriptions.append(await self._bus.subscribe(subject, handler))
        self._tasks.start(self._watch_silence(), "silence")

    async def stop(self) -> None:
        """Listen no more; the bus itself is left to its owner."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()
        await self._tasks.close()

    # --- commands ---

    async def send(self, command: Command[BodyT, ReplyT], target: Target, body: BodyT, options: SendOptions) -> ReplyT:
        """See `commands.CommandSender.send`."""
        if isinstance(target, VmTarget) is not (command.to == "vm"):
            raise TypeError(f"{command} is not answered by {target}")
        request = Request(
            id=options.id,
            command=command.name,
            key=command.key(body),
            generation=options.generation,
            job=options.job,
            body=to_dict(body),
        )
        patience = command.patience if options.patience is None else options.patience
        try:
            reply = await self._ask(request, target, patience, options)
            if reply.state == "failed":
                unknown = ErrorInfo(code="internal", message=f"{command} on {target} failed without a reason")
                raise from_info(reply.error or unknown)
            return command.read_reply(reply.result)
        except ValidationError as error:
            raise SeraiError(
                f"the answer of {target} to {command} was not understood: {error.errors()[0]['msg']}",
                remedy="Use the same version of Serai everywhere.",
            ) from error
        finally:
            self._sent.pop(options.id, None)
            options.waits("")

    async def _ask(self, request: Request, target: Target, patience: float, options: SendOptions) -> Reply:
        command, payload = request.command, encode(request)
        pause, answered = PAUSE_FIRST, self._clock.monotonic()
        silent_told = False
        while True:
            options.check()
            if isinstance(target, str):
                host, subject, who = target, Subjects.host_command(target), f"host {target}"
            else:
                host, target = await self._holder(target, command)
                subject, who = Subjects.vm_command(host, target.vm), f"the agent of VM {target.vm} on {host}"
            self._sent[request.id] = (host, options)
            try:
                answer = await self._request(HostName(host), subject, payload)
            except UnavailableError as error:
                silent = self._clock.monotonic() - answered
                if silent >= patience:
                    raise UnavailableError(
                        f"{who} did not answer {command} for {silent:.0f} s: {error.info.message}",
                        field="host",
                        value=host,
                        remedy="See that its agent runs and reaches the bus: serai host list.",
                    ) from error
                options.waits(f"{who} to answer {command}")
                silent_told = True
                await self._clock.sleep(min(pause, max(patience - silent, 0.01)))
                pause = min(pause * 2, PAUSE_MOST)
                continue
            if answer is None:
                continue
            reply = Reply.model_validate_json(answer)
            if reply.state != "running":
                return reply
            if silent_told:
                # What the host itself waits for is its own to say, and to take back.
                options.waits("")
                silent_told = False
            pause, answered = PAUSE_FIRST, self._clock.monotonic()

    async def _request(self, host: HostName, subject: str, payload: bytes) -> bytes | None:
        """The answer; None if the host said hello before it came: then it is to be asked again."""
        hello = self._hellos.setdefault(host, asyncio.Event())
        asking = asyncio.ensure_future(self._bus.request(subject, payload, timeout=ASK))
        greeted = asyncio.ensure_future(hello.wait())
        try:
            await asyncio.wait({asking, greeted}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            asking.cancel()
            greeted.cancel()
            await asyncio.gather(asking, greeted, return_exceptions=True)

    async def _holder(self, target: VmTarget, command: str) -> tuple[HostName, VmTarget]:
        """The host that holds the VM's lease, and the target bound to it. Raises ConflictError if it is another now."""
        async with self._store.read() as view:
            lease = await view.leases.need(target.vm)
        if target.host not in (None, lease.host) or target.epoch not in (None, lease.epoch):
            raise ConflictError(
                f"the VM's lease went to {lease.host} (epoch {lease.epoch}) before {command} was answered",
                field="vm",
                value=target.vm,
                remedy="See what became of it, and ask again.",
            )
        return lease.host, replace(target, host=lease.host, epoch=lease.epoch)

    # --- reports ---

    async def _on_progress(self, message: Message) -> None:
        progress = _parse(CommandProgress, message)
        host, options = self._sent.get(progress.request, ("", None))
        if options is not None and message.subject == Subjects.progress(host, progress.request):
            options.waits(progress.waits_for)
            options.on_progress(progress)

    async def _on_hello(self, message: Message) -> bytes:
        hello = _parse(Hello, message)
        if message.subject != Subjects.hello(hello.host):
            raise InvalidError("a hello on another host's subject", field="host", value=hello.host)
        async with self._store.transaction() as tx:
            host = await reports.greet(tx, hello.host, hello.facts, new_id(HostId))
        self._note(hello.host)
        if (waiting := self._hellos.pop(hello.host, None)) is not None:
            waiting.set()
        return encode(Welcome(host_id=host.id, time=self._clock.now()))

    async def _on_vm_report(self, message: Message) -> bytes:
        report = _parse(VmReport, message)
        if message.subject != Subjects.vm_report(report.host, report.vm):
            raise InvalidError("a report on another host's or VM's subject", field="vm", value=report.vm)
        await self.take([report])
        return RECEIVED

    async def take(self, said: list[VmReport]) -> None:
        """Write VM reports that say anything new (also those that commands are answered with)."""
        async with self._store.read() as view:
            fresh = await reports.news(view, said)
        if fresh:
            async with self._store.transaction() as tx:
                for report in fresh:
                    await reports.apply(tx, report)

    async def _on_host_report(self, message: Message) -> bytes:
        report = _parse(HostReport, message)
        if message.subject != Subjects.host_report(report.host):
            raise InvalidError("a report on another host's subject", field="host", value=report.host)
        known = True
        self._hearing[report.host] += 1
        try:
            known = await self._take_host_report(report)
        finally:
            self._hearing[report.host] -= 1
            if known:
                self._note(report.host)
        return RECEIVED

    async def _take_host_report(self, report: HostReport) -> bool:
        """Write what it says that is new; False if the host is not known here."""
        async with self._store.read() as view:
            host = await view.hosts.named(report.host)
            if host is None:
                # Its hello was to another controller's database. It says hello again once it reconnects.
                log.warning("host %s reports, but never said hello here", report.host)
                return False
            said = [one for one in report.vms if one.host == report.host]
            fresh = await reports.news(view, said)
            concerned = await reports.offers_concern(view, report.host, report.leases)
            missing = await reports.unlisted(view, report)
            known = {pool.id: pool for pool in await view.pools.on_host(report.host)}
        pools = [
            (known[pool_id], status)
            for pool_id, status in report.pools.items()
            if pool_id in known and reports.pool_changed(known[pool_id].status, status)
        ]
        returned = host.status.state is not HostState.ONLINE
        bridges = report.bridges if report.bridges != host.status.bridges else None
        if returned or fresh or concerned or missing or pools or bridges is not None:
            async with self._store.transaction() as tx:
                if returned:
                    await reports.back(tx, host)
                if concerned:
                    await reports.journals(tx, report.host, report.leases)
                for one in fresh:
                    await reports.apply(tx, one)
                await reports.write_unlisted(tx, report)
                await reports.write_pools(tx, pools)
                if bridges is not None:
                    await reports.write_bridges(tx, host, bridges)
        return True

    def _note(self, host: HostName) -> None:
        self._seen[host], self._heard[host] = self._clock.monotonic(), self._clock.now()

    def heard(self, host: HostName) -> datetime | None:
        """When the host spoke last, if it did since this controller was started."""
        return self._heard.get(host)

    async def _on_redeem(self, message: Message) -> bytes:
        asked = _parse(RedeemTicket, message)
        if asked.server != f"host.{Subjects.host_of(message.subject)}":
            raise UnauthorizedError("the ticket is redeemed by its own server only", field="server", value=asked.server)
        async with self._store.transaction() as tx:
            ticket = await tx.tickets.look(asked.ticket)
            # Looked at before it is used up: a wrong bearer must not be able to spoil it for the right one.
            if ticket is None or ticket.holder != asked.holder or ticket.server != asked.server:
                raise UnauthorizedError("the ticket is not known, or not for these two ends")
            await tx.tickets.take(asked.ticket)
            await tx.tickets.clear(tx.now)
            expired = ticket.expires <= tx.now
        if expired:
            raise UnauthorizedError("the ticket has expired", remedy="Ask for a new one.")
        return encode(ticket)

    async def _watch_silence(self) -> None:
        while True:
            await self._clock.sleep(LOOK)
            now = self._clock.monotonic()
            for name, seen in list(self._seen.items()):
                if now - seen < self._silence or self._hearing[name]:
                    continue
                log.warning("host %s has not answered for %.0f s", name, now - seen)
                try:
                    async with self._store.transaction() as tx:
                        await reports.gone_silent(tx, name, now - seen, self._heard.get(name))
                except StoreUnavailableError:
                    # Its word may have been lost to the same failure: it gets a full period to speak up.
                    self._seen[name] = self._clock.monotonic()
                    continue
                # It may have spoken while this was written; then its next report brings it back.
                if self._seen.get(name) == seen:
                    del self._seen[name]


def _parse(model: type[ModelT], message: Message) -> ModelT:
    try:
        return model.model_validate_json(message.payload)
    except ValidationError as error:
        raise invalid(error, f"not a {model.__name__} on {message.subject}") from error
