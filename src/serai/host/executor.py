"""From a command's kind to what carries it out: one readable table.

Handlers are idempotent: a command whose answer was lost with a killed agent is carried out again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from pydantic import BaseModel

from serai.core.lifecycle import VmEvent
from serai.host.images import HostImages
from serai.host.storage import HostStorage
from serai.host.uplinks import HostUplinks
from serai.host.vms import Vms
from serai.schema.errors import InvalidError
from serai.schema.messages import (
    COMMANDS,
    Command,
    Empty,
    GuestAnswer,
    GuestExec,
    ImageDrop,
    ImageFetch,
    ImageMake,
    Kind,
    NetworkEnsure,
    PoolClose,
    PoolOpen,
    UplinkConfirm,
    UplinkTakeCommand,
    VmAbandon,
    VmConfigure,
    VmMigrateCancel,
    VmMigrateStart,
    VmPrepare,
    VmRelease,
    VmSignal,
    VmStart,
    VmStopCommand,
    VolumeAdmit,
    VolumeDrop,
    VolumeGrow,
    VolumeLook,
    VolumeMake,
    VolumeRefuse,
)


class Report(Protocol):
    """What is told of a command at work; passed on as `Progress`."""

    def __call__(self, phase: str, fraction: float | None, waits_for: str = "") -> None: ...


BodyT = TypeVar("BodyT", bound=BaseModel)


class Executor:
    """Carries out one command at a time per call; the agent keeps repeats and order."""

    def __init__(self, vms: Vms, storage: HostStorage, images: HostImages, uplinks: HostUplinks) -> None:
        self._vms = vms
        self._storage = storage
        self._images = images
        self._uplinks = uplinks
        self._table: dict[Kind, Callable[[BaseModel, Report], Awaitable[BaseModel]]] = {}
        self._register()

    async def run(self, command: Command, report: Report) -> BaseModel:
        """Check the body and carry the command out. Raises SeraiError."""
        kind = Kind(command.kind) if command.kind in set(Kind) else None
        if kind is None or kind not in self._table:
            raise InvalidError(
                "the command is not known here", field="kind", value=command.kind, remedy="Update the agent."
            )
        body = COMMANDS[kind].body.model_validate(command.body)
        return await self._table[kind](body, report)

    def _on(
        self, kind: Kind, model: type[BodyT], handler: Callable[[BodyT, Report], Awaitable[BaseModel | None]]
    ) -> None:
        async def call(body: BaseModel, report: Report) -> BaseModel:
            if not isinstance(body, model):
                raise TypeError(f"{kind} takes {model.__name__}, not {type(body).__name__}")
            return await handler(body, report) or Empty()

        self._table[kind] = call

    def _register(self) -> None:
        vms, moves, storage, images, uplinks = self._vms, self._vms.moves, self._storage, self._images, self._uplinks
        self._on(Kind.VM_START, VmStart, self._start)
        self._on(Kind.VM_PREPARE, VmPrepare, self._prepare)
        self._on(Kind.VM_ABANDON, VmAbandon, lambda body, _: moves.abandon(body))
        self._on(Kind.VM_RELEASE, VmRelease, lambda body, _: vms.release(body))
        self._on(Kind.VM_MIGRATE, VmMigrateStart, self._migrate)
        self._on(Kind.VM_MIGRATE_CANCEL, VmMigrateCancel, self._cancel)
        self._on(Kind.VM_STOP, VmStopCommand, self._stop)
        self._on(Kind.VM_PAUSE, VmSignal, lambda body, _: vms.agent(body.vm).signal(VmEvent.PAUSE))
        self._on(Kind.VM_RESUME, VmSignal, lambda body, _: vms.agent(body.vm).signal(VmEvent.RESUME))
        self._on(Kind.VM_RESET, VmSignal, lambda body, _: vms.agent(body.vm).signal(VmEvent.RESET))
        self._on(Kind.VM_CONFIGURE, VmConfigure, lambda body, _: vms.configure(body))
        self._on(Kind.VM_GUEST, GuestExec, self._guest)
        self._on(Kind.POOL_OPEN, PoolOpen, lambda body, _: storage.open_pool(body))
        self._on(Kind.POOL_CLOSE, PoolClose, lambda body, _: storage.close_pool(body))
        self._on(Kind.VOLUME_MAKE, VolumeMake, storage.make)
        self._on(Kind.VOLUME_DROP, VolumeDrop, lambda body, _: storage.drop(body))
        self._on(Kind.VOLUME_GROW, VolumeGrow, lambda body, _: storage.grow(body))
        self._on(Kind.VOLUME_LOOK, VolumeLook, lambda body, _: storage.look(body))
        self._on(Kind.VOLUME_ADMIT, VolumeAdmit, lambda body, _: storage.admit(body))
        self._on(Kind.VOLUME_REFUSE, VolumeRefuse, lambda body, _: storage.refuse(body))
        self._on(Kind.IMAGE_MAKE, ImageMake, images.make)
        self._on(Kind.IMAGE_FETCH, ImageFetch, images.fetch)
        self._on(Kind.IMAGE_DROP, ImageDrop, lambda body, _: images.drop(body))
        self._on(Kind.UPLINK_TAKE, UplinkTakeCommand, lambda body, _: uplinks.take(body))
        self._on(Kind.UPLINK_CONFIRM, UplinkConfirm, lambda body, _: uplinks.confirm(body))
        self._on(Kind.NETWORK_ENSURE, NetworkEnsure, lambda body, _: uplinks.ensure(body))

    async def _start(self, body: VmStart, _: Report) -> BaseModel:
        # Before anything is begun: for a copy that is damaged the controller brings another, and asks again.
        await self._images.check_boot(body.launch)
        return await self._vms.start(body)

    async def _prepare(self, body: VmPrepare, _: Report) -> BaseModel:
        await self._images.check_boot(body.launch)
        return await self._vms.moves.prepare(body)

    async def _migrate(self, body: VmMigrateStart, report: Report) -> BaseModel:
        return await self._vms.moves.migrate(body, lambda waits_for: report("commit", None, waits_for))

    async def _cancel(self, body: VmMigrateCancel, _: Report) -> BaseModel:
        return self._vms.moves.cancel(body)

    async def _stop(self, body: VmStopCommand, _: Report) -> BaseModel:
        return await self._vms.stop(body)

    async def _guest(self, body: GuestExec, _: Report) -> BaseModel:
        machine = self._vms.agent(body.vm).live_machine()
        return GuestAnswer(answer=await machine.guest(body.execute, body.arguments, timeout=10.0))
