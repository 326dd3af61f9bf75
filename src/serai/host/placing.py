"""Where a VM's parts are on this host: taps, files, folders. What is made here is undone if QEMU does not start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from serai.drivers.hypervisor.base import Placing
from serai.drivers.network.base import Tap
from serai.host.kit import Kit
from serai.schema.attach import Launch, VnicAttachment
from serai.schema.errors import NotFoundError


async def make_tap(kit: Kit, vnic: VnicAttachment, *, open_port: bool) -> Tap:
    """The VNIC's tap on its bridge. Raises NotFoundError, with this host's name, where the bridge is missing."""
    try:
        return await kit.network.create_tap(vnic, open_port=open_port)
    except NotFoundError as error:
        raise NotFoundError(
            f"host {kit.host} has no bridge {vnic.bridge}",
            field="spec.bridge",
            value=vnic.bridge,
            remedy=f"Make it there, for example: serai host network take UPLINK --host {kit.host} "
            f"--bridge {vnic.bridge}.",
        ) from error


@contextlib.asynccontextmanager
async def place(kit: Kit, launch: Launch, *, open_ports: bool) -> AsyncIterator[Placing]:
    """Make what QEMU needs. After the block our tap descriptors are closed, and with them taps that no QEMU took."""
    taps: dict[int, Tap] = {}
    try:
        for vnic in launch.vnics:
            taps[vnic.index] = await make_tap(kit, vnic, open_port=open_ports)
        seed: Path | None = None
        if launch.seed is not None:
            seed = kit.paths.vm_state(launch.vm) / "seed.iso"
            await kit.write_seed(launch.seed, seed)
        run_dir = kit.paths.vm_run(launch.vm)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(run_dir.parent, 0o711)  # noqa: S103 - QEMU's user passes through to its own folder, and lists nothing
        yield Placing(
            run_dir=run_dir,
            tls_dir=kit.paths.qemu_pki if kit.paths.qemu_pki.exists() else None,
            taps={index: tap.fd for index, tap in taps.items()},
            disks={
                disk.index: kit.disk_path(disk.source.pool, disk.source.volume)
                for disk in launch.disks
                if disk.source.kind == "file"
            },
            seed=seed,
            kernel=await kit.image_file(launch.boot.image, launch.boot.kernel) if launch.boot else None,
            initrd=await kit.image_file(launch.boot.image, launch.boot.initrd) if launch.boot else None,
            user=kit.qemu_user,
        )
    finally:
        for tap in taps.values():
            tap.close()
