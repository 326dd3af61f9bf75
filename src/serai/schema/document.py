"""What a host keeps of a VM for the controller, from which a database that lost the VM takes it in again."""

from __future__ import annotations

from pydantic import Field

from serai.schema.image import Image
from serai.schema.network import Network
from serai.schema.resource import Frozen
from serai.schema.vm import Vm
from serai.schema.volume import Pool, Volume


class VmDocument(Frozen):
    """The VM and all that it refers to, as they were stored when the VM was last started, configured or moved."""

    vm: Vm
    volumes: list[Volume] = Field(default_factory=list)
    pools: list[Pool] = Field(default_factory=list)
    networks: list[Network] = Field(default_factory=list)
    image: Image | None = None
