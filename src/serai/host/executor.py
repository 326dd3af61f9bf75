"""From a command to what carries it out: one readable table.

Handlers are idempotent: a command whose reply was lost with a killed agent is carried out again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pydantic import ValidationError

from serai.core.lifecycle import VmEvent
from serai.drivers.network.base import Uplinks
from serai.host.identity import HostIdentity
from serai.host.migration.manager import MigrationManager
from serai.host.storage.images import HostImages
from serai.host.storage.pools import HostPools
from serai.host.storage.volumes import HostVolumes
from serai.host.vm.supervisor import Supervisor
from serai.schema.commands import host, image, migration, pool, uplink, vm, volume
from serai.schema.commands.base import BodyT, Command, ReplyT
from serai.schema.commands.envelope import Request
from serai.schema.document import VmDocument
from serai.schema.encoding import invalid, to_dict
from serai.schema.errors import InvalidError
from serai.schema.reports import Introduction
from serai.schema.vm import VmReport


class ReportProgress(Protocol):
    """What a handler tells of its command while it works; passed on as `CommandProgress`."""

    def __call__(self, phase: str, fraction: float | None, waits_for: str = "") -> None: ...


Handler = Callable[[dict[str, Any], ReportProgress], Awaitable[dict[str, Any] | None]]
"""From a command's body to its reply, both as they travel."""


def on(
    command: Command[BodyT, ReplyT], handle: Callable[[BodyT, ReportProgress], Awaitable[ReplyT]]
) -> tuple[str, Handler]:
    """A row of the table."""

    async def handler(content: dict[str, Any], progress: ReportProgress) -> dict[str, Any] | None:
        try:
            body = command.body.model_validate(content)
        except ValidationError as error:
            raise invalid(error, f"the body of {command}") from error
        reply = await handle(body, progress)
        return None if reply is None else to_dict(reply)

    return command.name, handler


class Executor:
    """Carries out one command at a time per call; the agent keeps repeats and order."""

    def __init__(
        self,
        identity: HostIdentity,
        vms: Supervisor,
        moves: MigrationManager,
        pools: HostPools,
        volumes: HostVolumes,
        images: HostImages,
        uplinks: Uplinks,
    ) -> None:
        self._identity = identity
        self._vms = vms
        self._moves = moves
        self._images = images
        self.table = dict(
            [
                on(host.HOST_INTRODUCE, self._introduce),
                on(vm.VM_START, self._start),
                on(vm.VM_RELEASE, lambda body, _: vms.release(body)),
                on(vm.VM_STOP, lambda body, _: vms.stop(body)),
                on(vm.VM_PAUSE, lambda body, _: vms.agent(body.vm).signal(VmEvent.PAUSE)),
                on(vm.VM_RESUME, lambda body, _: vms.agent(body.vm).signal(VmEvent.RESUME)),
                on(vm.VM_RESET, lambda body, _: vms.agent(body.vm).signal(VmEvent.RESET)),
                on(vm.VM_CONFIGURE, lambda body, _: vms.agent(body.launch.vm).configure(body)),
                on(vm.VM_DOCUMENT, self._document),
                on(migration.MIGRATION_PREPARE, self._prepare),
                on(migration.MIGRATION_START, self._migrate),
                on(migration.MIGRATION_CANCEL, self._cancel),
                on(migration.MIGRATION_WITHDRAW, lambda body, _: moves.withdraw(body)),
                on(migration.MIGRATION_ABANDON, lambda body, _: moves.abandon(body)),
                on(pool.POOL_OPEN, lambda body, _: pools.open(body)),
                on(pool.POOL_CLOSE, lambda body, _: pools.close(body)),
                on(volume.VOLUME_CREATE, volumes.make),
                on(volume.VOLUME_DELETE, lambda body, _: volumes.drop(body)),
                on(volume.VOLUME_GROW, lambda body, _: volumes.grow(body)),
                on(volume.VOLUME_MEASURE, lambda body, _: volumes.look(body)),
                on(volume.VOLUME_ADMIT, lambda body, _: volumes.admit(body)),
                on(volume.VOLUME_REFUSE, lambda body, _: volumes.refuse(body)),
                on(image.IMAGE_CREATE, images.make),
                on(image.IMAGE_FETCH, images.fetch),
                on(image.IMAGE_DELETE, lambda body, _: images.drop(body)),
                on(uplink.UPLINK_TAKE, lambda body, _: uplinks.take(body.uplink, body.bridge, body.confirm_within)),
                on(uplink.UPLINK_CONFIRM, lambda body, _: uplinks.confirm(body.token)),
            ]
        )

    async def run(self, request: Request, progress: ReportProgress) -> dict[str, Any] | None:
        """Check the body, carry the command out and return its reply as it travels. Raises SeraiError."""
        handler = self.table.get(request.command)
        if handler is None:
            raise InvalidError(
                "the command is not known here", field="command", value=request.command, remedy="Update the agent."
            )
        return await handler(request.body, progress)

    async def _introduce(self, _: host.Introduce, __: ReportProgress) -> Introduction:
        return self._identity.introduce(await self._vms.strays())

    async def _document(self, body: vm.ReadDocument, _: ReportProgress) -> VmDocument:
        return self._vms.document(body.vm)

    async def _start(self, body: vm.StartVm, _: ReportProgress) -> VmReport:
        # Before anything is begun: for a copy that is damaged the controller brings another, and asks again.
        await self._images.check_boot(body.launch)
        return await self._vms.start(body)

    async def _prepare(self, body: migration.PrepareMigration, _: ReportProgress) -> migration.MigrationEndpoint:
        await self._images.check_boot(body.launch)
        return await self._moves.prepare(body)

    async def _migrate(self, body: migration.StartMigration, progress: ReportProgress) -> migration.MigrationOutcome:
        return await self._moves.migrate(body, lambda waits_for: progress("commit", None, waits_for))

    async def _cancel(self, body: migration.CancelMigration, _: ReportProgress) -> migration.CancelResult:
        return self._moves.cancel(body)
