"""Pools (a place for volumes on a host) and volumes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from serai.schema.ids import HostRef, ImageRef, PoolId, PoolRef, VmRef, VolumeId
from serai.schema.resource import Create, Description, Frozen, Labels, Resource
from serai.schema.units import SIZE_MAX, Size


class PoolDriverName(StrEnum):
    DIR = "dir"


class ExportKind(StrEnum):
    NONE = "none"
    """Volumes are local files: only VMs on the pool's own host can use them."""
    ISCSI = "iscsi"


class PoolSpec(Frozen):
    host: HostRef
    driver: PoolDriverName = PoolDriverName.DIR
    path: str = ""
    """Directory on the host; empty: pools/<id> in the agent's own state directory."""
    export: ExportKind = ExportKind.ISCSI


class PoolStatus(Frozen):
    """Bytes. `committed` is the sum of the volumes' sizes; sparse volumes may take less."""

    state: str = "unknown"
    path: str = ""
    total: int = 0
    free: int = 0
    committed: int = 0
    volumes: int = 0
    reason: str = ""


class Pool(Resource[PoolSpec, PoolStatus]):
    kind: str = "pool"
    id: PoolId


class PoolCreate(Create[PoolSpec]):
    pass


class VolumeSpec(Frozen):
    pool: PoolRef
    size: Size = Field(gt=0, le=SIZE_MAX)
    image: ImageRef | None = None
    """The image whose content the volume starts with."""


class VolumeState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"


class VolumeStatus(Frozen):
    state: VolumeState = VolumeState.CREATING
    size: int = 0
    vm: VmRef | None = None
    """The VM that has it as a disk."""
    owner: VmRef | None = None
    """The VM that it was made for, and is deleted with unless that disk says `keep`."""
    reason: str = ""


class Volume(Resource[VolumeSpec, VolumeStatus]):
    kind: str = "volume"
    id: VolumeId


class VolumeCreate(Create[VolumeSpec]):
    pass


class VolumeEdit(Frozen):
    """Volumes only grow."""

    size: Size | None = Field(default=None, gt=0, le=SIZE_MAX)
    description: Description | None = None
    labels: Labels | None = None
