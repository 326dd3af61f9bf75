"""Commands that start, stop and change a VM on the host that holds its lease."""

from __future__ import annotations

from types import NoneType

from pydantic import Field

from serai.schema.commands.base import Command
from serai.schema.document import VmDocument
from serai.schema.ids import VmId
from serai.schema.launch import Launch
from serai.schema.resource import Frozen
from serai.schema.vm import RestartPolicy, VmReport


class LaunchBody(Frozen):
    """A launch, and when it is repeated without a controller. `document` is kept beside it for the controller."""

    launch: Launch
    restart: RestartPolicy
    autostart: bool = True
    autostart_order: int = 0
    document: VmDocument | None = None


class StartVm(LaunchBody):
    """Start from scratch under `epoch`. Answered with a report once its vCPUs run."""

    epoch: int


class ReleaseVm(Frozen):
    """The host gives up `epoch` and all lower: QEMU ended, tap gone, journal `released`, its folders too."""

    vm: VmId
    epoch: int
    reason: str = ""


class StopVm(Frozen):
    vm: VmId
    force: bool = False
    timeout: float = 60.0


class SignalVm(Frozen):
    """For the commands that need no more than the VM."""

    vm: VmId


class ConfigureVm(LaunchBody):
    """Bring a running VM to `launch` as far as can be done live; the rest is answered as pending."""


class ConfigureResult(Frozen):
    """`undo` says, for some of what is pending, which options of `serai vm edit` take it back."""

    applied: list[str] = Field(default_factory=list)
    pending: list[str] = Field(default_factory=list)
    undo: dict[str, str] = Field(default_factory=dict)


class ReadDocument(Frozen):
    """Answered with the document of a VM that is on this host."""

    vm: VmId


VM_START = Command("vm.start", StartVm, VmReport, lambda body: f"vm/{body.launch.vm}", patience=120.0)
VM_RELEASE = Command("vm.release", ReleaseVm, NoneType, lambda body: f"vm/{body.vm}")
VM_STOP = Command("vm.stop", StopVm, VmReport, lambda body: f"vm/{body.vm}", to="vm")
VM_RESET = Command("vm.reset", SignalVm, VmReport, lambda body: f"vm/{body.vm}", to="vm")
VM_PAUSE = Command("vm.pause", SignalVm, VmReport, lambda body: f"vm/{body.vm}", to="vm")
VM_RESUME = Command("vm.resume", SignalVm, VmReport, lambda body: f"vm/{body.vm}", to="vm")
VM_CONFIGURE = Command("vm.configure", ConfigureVm, ConfigureResult, lambda body: f"vm/{body.launch.vm}", to="vm")
VM_DOCUMENT = Command("vm.document", ReadDocument, VmDocument, lambda body: f"vm/{body.vm}")
