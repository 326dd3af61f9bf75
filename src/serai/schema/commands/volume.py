"""Commands for a volume, to the host of its pool."""

from __future__ import annotations

from types import NoneType

from serai.schema.commands.base import Command
from serai.schema.ids import HostName, ImageId, PoolId, VmId, VolumeId
from serai.schema.launch import Admission
from serai.schema.resource import Frozen


class VolumeBody(Frozen):
    pool: PoolId
    volume: VolumeId


class CreateVolume(VolumeBody):
    """With `image`: its content first (`clone_of` likewise for a volume of the same pool), then grown to `size`."""

    size: int
    image: ImageId | None = None
    clone_of: VolumeId | None = None


class DeleteVolume(VolumeBody):
    """Its export ends, then it goes."""


class GrowVolume(VolumeBody):
    size: int


class MeasureVolume(VolumeBody):
    """How large the volume is on the host now."""


class VolumeSize(Frozen):
    """In bytes."""

    size: int


class AdmitInitiator(VolumeBody):
    """Export the volume if it is not yet, and let `admission` in.

    StaleError if the target knows its epoch, or a later one, and has not admitted just this (`Exporter.admit`).
    """

    admission: Admission


class VolumeExport(Frozen):
    """Where an initiator finds the volume."""

    portal: str
    target: str
    lun: int


class RefuseInitiator(VolumeBody):
    """Fence: sessions of the VM's epochs up to `epoch` are closed, and they are refused from now on.

    With `host`, that is so for this one epoch of that host alone: the epoch before it is in use.
    """

    vm: VmId
    epoch: int
    host: HostName | None = None


VOLUME_CREATE = Command("volume.create", CreateVolume, NoneType, lambda body: f"volume/{body.volume}", patience=600.0)
VOLUME_DELETE = Command("volume.delete", DeleteVolume, NoneType, lambda body: f"volume/{body.volume}")
VOLUME_GROW = Command("volume.grow", GrowVolume, NoneType, lambda body: f"volume/{body.volume}")
VOLUME_MEASURE = Command("volume.measure", MeasureVolume, VolumeSize, lambda body: f"volume/{body.volume}")
VOLUME_ADMIT = Command("volume.admit", AdmitInitiator, VolumeExport, lambda body: f"volume/{body.volume}")
VOLUME_REFUSE = Command("volume.refuse", RefuseInitiator, NoneType, lambda body: f"volume/{body.volume}")
