"""Commands to hosts and VMs.

A request is repeated with the same id until there is an answer: `running` and silence both mean "ask again". The sender
gives up after `patience` seconds of silence, counted from the last answer; silence never means that the command was not
carried out. A host's hello may mean that its agent was restarted and forgot what it was asked: the request is repeated
at once.

A request names the agent that is meant, by the incarnation of the host that is known, and where the database stands.
Nothing is sent before the host has introduced itself to this run of the controller: its journal would forget that it
knew a later state of the database. Nothing is sent to a fenced host.

A command for a VM goes to the host that holds the VM's lease, and to no other: the lease is read before each attempt,
and once it is another's the command is given up. (The host looks at its own journal besides.)
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pydantic import ValidationError

from serai.controller.commands import SendOptions, Target, VmTarget
from serai.controller.services.rights import Rights
from serai.controller.store import Store, View
from serai.lib.bus import Bus, Message, Subscription
from serai.lib.clock import Clock, SystemClock
from serai.schema.commands.base import BodyT, Command, ReplyT
from serai.schema.commands.envelope import HOLD, CommandProgress, Reply, Request
from serai.schema.commands.host import HOST_INTRODUCE
from serai.schema.encoding import encode, parse, to_dict
from serai.schema.errors import ConflictError, ErrorInfo, SeraiError, UnavailableError, from_info
from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.subjects import Subjects

ASK = HOLD + 5.0
"""Seconds for one request: the receiver answers within HOLD."""
PAUSE_FIRST = 0.1
PAUSE_MOST = 1.0
"""Seconds between two attempts to reach somebody who does not answer."""


class Gateway:
    """Sends commands to all hosts over the bus."""

    def __init__(self, bus: Bus, store: Store, rights: Rights, clock: Clock | None = None) -> None:
        self._bus = bus
        self._store = store
        self._rights = rights
        self._clock = clock or SystemClock()
        self._sent: dict[str, tuple[str, SendOptions]] = {}
        """By request: the host that was asked, whose progress alone counts, and who listens."""
        self._hellos: dict[str, asyncio.Event] = {}
        """By host that is being asked: set at its next hello."""
        self._progress: Subscription | None = None

    async def start(self) -> None:
        """Listen for the progress of commands."""
        self._progress = await self._bus.subscribe(Subjects.progress("*", "*"), self._on_progress)

    async def stop(self) -> None:
        """Listen no more; the bus itself is left to its owner."""
        if self._progress is not None:
            await self._progress.unsubscribe()

    def greeted(self, host: HostName) -> None:
        """The host's agent said hello: what it has not answered is asked again at once."""
        if (waiting := self._hellos.pop(host, None)) is not None:
            waiting.set()

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
        command = request.command
        pause, answered = PAUSE_FIRST, self._clock.monotonic()
        silent_told = False
        while True:
            options.check()
            async with self._store.read() as view:
                if isinstance(target, str):
                    host, subject, who = HostName(target), Subjects.host_command(target), f"host {target}"
                else:
                    host, target = await _holder(view, target, command)
                    subject, who = Subjects.vm_command(host, target.vm), f"the agent of VM {target.vm} on {host}"
                payload = encode(await _addressed(view, host, request))
            self._sent[request.id] = (host, options)
            try:
                answer = await self._request(host, subject, payload, introduced=command != HOST_INTRODUCE.name)
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

    async def _request(self, host: HostName, subject: str, payload: bytes, *, introduced: bool) -> bytes | None:
        """The answer; None if the host said hello before it came: then it is to be asked again."""
        if introduced and not self._rights.has_reported(host):
            raise UnavailableError(f"host {host} has not reported since the controller was started")
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

    async def _on_progress(self, message: Message) -> None:
        progress = parse(CommandProgress, message.payload, message.subject)
        host, options = self._sent.get(progress.request, ("", None))
        if options is not None and message.subject == Subjects.progress(host, progress.request):
            options.waits(progress.waits_for)
            options.on_progress(progress)


async def _holder(view: View, target: VmTarget, command: str) -> tuple[HostName, VmTarget]:
    """The host that holds the VM's lease, and the target bound to it. Raises ConflictError if it is another now."""
    lease = await view.leases.need(target.vm)
    if target.host not in (None, lease.host) or target.epoch not in (None, lease.epoch):
        raise ConflictError(
            f"the VM's lease went to {lease.host} (epoch {lease.epoch}) before {command} was answered",
            field="vm",
            value=target.vm,
            remedy="See what became of it, and ask again.",
        )
    return lease.host, replace(target, host=lease.host, epoch=lease.epoch)


async def _addressed(view: View, host: HostName, request: Request) -> Request:
    """The request as it is sent now. Raises UnavailableError for a fenced host."""
    if request.command == HOST_INTRODUCE.name:
        return request
    known = await view.hosts.named(host)
    if known is not None and known.status.state is HostState.FENCED:
        raise UnavailableError(
            f"host {host} is fenced", field="host", value=host, remedy="Start its agent: serai host show."
        )
    to, position = await view.lineage.incarnation(host), await view.lineage.position()
    return request.model_copy(update={"to": to, "position": position})
