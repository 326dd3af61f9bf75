"""What a VM's QEMU needs of this host: taps, files, folders. All of it is undone if QEMU does not start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from serai.drivers.hypervisor.base import HostResources
from serai.drivers.network.base import Tap
from serai.host.network.ports import VnicPorts
from serai.lib.paths import HostPaths
from serai.schema.launch import Disk, Launch, Seed


class VmResources:
    """`disk_path(pool, volume)` and `image_file(image, name)` are files on this host; the latter checks the image.

    `write_seed` writes cloud-init's disk, atomically and readable to nobody else.
    """

    def __init__(
        self,
        *,
        paths: HostPaths,
        ports: VnicPorts,
        disk_path: Callable[[str, str], Path],
        image_file: Callable[[str, str], Awaitable[Path]],
        write_seed: Callable[[Seed, Path], Awaitable[None]],
        qemu_user: str | None = "serai-qemu",
    ) -> None:
        self._paths = paths
        self.ports = ports
        self._disk_path = disk_path
        self._image_file = image_file
        self._write_seed = write_seed
        self._qemu_user = qemu_user

    @contextlib.asynccontextmanager
    async def place(self, launch: Launch, *, open_ports: bool) -> AsyncIterator[HostResources]:
        """Make what QEMU needs. After the block our tap descriptors are closed, and taps that no QEMU took gone."""
        taps: dict[int, Tap] = {}
        try:
            for vnic in launch.vnics:
                taps[vnic.index] = await self.ports.create(vnic, open_port=open_ports)
            seed: Path | None = None
            if launch.seed is not None:
                seed = self._paths.vm_state(launch.vm) / "seed.iso"
                await self._write_seed(launch.seed, seed)
            run_dir = self.run_dir(launch.vm)
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(run_dir.parent, 0o711)  # noqa: S103 - QEMU's user passes to its own folder, and lists nothing
            files = {disk.index: self.disk_file(disk) for disk in launch.disks}
            boot = launch.boot
            yield HostResources(
                run_dir=run_dir,
                tls_dir=self._paths.qemu_pki if self._paths.qemu_pki.exists() else None,
                taps={index: tap.fd for index, tap in taps.items()},
                disks={index: file for index, file in files.items() if file is not None},
                seed=seed,
                kernel=await self._image_file(boot.image, boot.kernel) if boot else None,
                initrd=await self._image_file(boot.image, boot.initrd) if boot else None,
                user=self._qemu_user,
            )
        finally:
            for tap in taps.values():
                tap.close()

    def disk_file(self, disk: Disk) -> Path | None:
        """The disk's file, if its source is a file."""
        source = disk.source
        return self._disk_path(source.pool, source.volume) if source.kind == "file" else None

    def run_dir(self, vm: str) -> Path:
        """The VM's folder of sockets."""
        return self._paths.vm_run(vm)

    async def remove(self, vm: str) -> None:
        """Delete the VM's folders on this host."""
        for folder in (self._paths.vm_run(vm), self._paths.vm_state(vm)):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
