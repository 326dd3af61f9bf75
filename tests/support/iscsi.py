"""A host whose volumes a real tgtd exports on a loopback address, and who is let in."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from pydantic import SecretStr

from serai.drivers.storage.iscsi import TgtExporter
from serai.drivers.storage.tgt_socket import TgtSocket
from serai.drivers.storage.tgt_targets import LUN, TARGET_PREFIX
from serai.lib.paths import HostPaths
from serai.schema.ids import HostName, VmId, VolumeId
from serai.schema.launch import Admission, IscsiDisk

VOLUME = "0123456789ab"
SIZE = 8 << 20


def free_portal() -> tuple[str, int]:
    """A loopback address that nothing else is likely to use, and a port that is free there."""
    address = f"127.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}.{secrets.randbelow(253) + 1}"
    with socket.socket() as trial:
        trial.bind((address, 0))
        return address, int(trial.getsockname()[1])


class Host:
    """One host's paths, portal and volume; agents (exporters) come and go."""

    def __init__(self, folder: Path) -> None:
        self.paths = HostPaths(folder / "state", folder / "run")
        self.address, self.port = free_portal()
        self.volume = folder / "volume.raw"
        self.volume.touch()
        os.truncate(self.volume, SIZE)
        self.socket = TgtSocket(self.paths.tgtd / "control.0")

    def agent(self) -> TgtExporter:
        return TgtExporter(self.paths, self.address, self.port)

    def disk(self, admission: Admission, volume: str = VOLUME) -> IscsiDisk:
        return IscsiDisk(
            volume=VolumeId(volume),
            portal=f"{self.address}:{self.port}",
            target=TARGET_PREFIX + volume,
            lun=LUN,
            initiator=admission.initiator,
            user=admission.user,
            password=admission.password,
        )

    async def pid(self) -> int | None:
        return await self.socket.peer()


VM = VmId("aabbccddeeff")


def epoch(number: int) -> Admission:
    """What a VM of that epoch is let in with."""
    return Admission(
        vm=VM,
        epoch=number,
        host=HostName("h1"),
        initiator=f"iqn.2026-01.io.serai:vm.aabbccddeeff.{number}",
        user=f"vm-aabbccddeeff-{number}",
        password=SecretStr(f"secret-of-epoch-{number}"),
    )
