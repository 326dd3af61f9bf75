"""The Debian guest: a real one, from packages, by mmdebstrap.

systemd, cloud-init (NoCloud, network by systemd-networkd), the stock QEMU guest agent and an SSH server, on Debian's
cloud kernel; an MBR disk that a BIOS boots through GRUB, a login on the serial console, no password anywhere. It comes
from the mirrors that this machine's own apt uses. Nothing is mounted and no loop device is used: the file system is
made from the tree in place. The recipe fixes the packages' versions and our own files, and with them every byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import uuid
from pathlib import Path

from serai.drivers.image import ext4, grub
from serai.drivers.image.base import Progress, write_manifest
from serai.drivers.image.packages import KERNEL, candidates, closure, debian_sources
from serai.lib.process import ProcessError, run
from serai.schema.errors import CapacityError, HostError
from serai.schema.image import ImageKind, ImageManifest

HOOKS = Path(__file__).parent / "guest"
NAMESPACE = uuid.UUID("0b6f5d5e-6f0e-5d53-8a55-5e7a15e7a102")
PACKAGES = (
    KERNEL, "initramfs-tools", "zstd", "systemd-sysv", "dbus", "udev", "systemd-resolved", "cloud-init",
    "cloud-guest-utils", "fdisk", "qemu-guest-agent", "openssh-server", "sudo", "netbase", "iproute2", "iputils-ping",
    "ca-certificates",
)  # fmt: skip
SIZE = 2 << 30
"""Bytes of the disk. The root file system grows at the first boot to fill the volume that it was cloned into."""
DPKG_OPTIONS = (
    # A build that is cut short is thrown away, so nothing has to reach the disk before its end.
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
)
BUILD_TIMEOUT = 1800.0
"""Seconds; a slow mirror is no error."""


class DebianBuilder:
    """Builds the Debian guest."""

    name = "debian"

    async def recipe(self) -> str:
        """A hash of the versions, as apt knows them now, of the packages and all that they need, and of our own files.

        The mirrors count too: they are in the image.
        """
        suite, sources = await debian_sources()
        digest = hashlib.sha256(f"{suite} {sources} {SIZE} {DPKG_OPTIONS}".encode())
        for package, version in sorted((await candidates(await closure(PACKAGES))).items()):
            digest.update(f"{package} {version}\n".encode())
        for file in (_before(), _after(), Path(__file__), Path(grub.__file__), Path(ext4.__file__)):
            digest.update(await asyncio.to_thread(file.read_bytes))
        return digest.hexdigest()

    async def build(self, folder: Path, progress: Progress) -> ImageManifest:
        """Write `disk.qcow2` and its manifest. Raises HostError, UnsupportedError, CapacityError."""
        recipe = await self.recipe()
        filesystem = uuid.uuid5(NAMESPACE, recipe)
        # Beside the result, so that a machine's small /tmp does not matter, and a crash's remains are swept with it.
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch_name:
            scratch = Path(scratch_name)
            try:
                tree = await _install(scratch, filesystem, progress)
                disk = await _disk(scratch, tree, filesystem, progress)
                progress("compressing the disk", 0.9)
                await run(
                    ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", str(disk),
                     str(folder / "disk.qcow2")],
                    timeout=600,
                )  # fmt: skip
            except ProcessError as error:
                if "No space left on device" in error.stderr:
                    raise CapacityError(
                        "no room to build the image", field="image", value=folder.parent, remedy="Free 3 GB there."
                    ) from error
                raise
            packages = await _installed(tree)
        progress("done", 1.0)
        return await write_manifest(
            folder,
            name=self.name,
            kind=ImageKind.DISK,
            files=["disk.qcow2"],
            image_format="qcow2",
            virtual_size=SIZE,
            recipe=recipe,
            packages=packages,
            cloud_init=True,
        )


def _before() -> Path:
    return HOOKS / "debian-before.sh"


def _after() -> Path:
    return HOOKS / "debian-after.sh"


async def _install(scratch: Path, filesystem: uuid.UUID, progress: Progress) -> Path:
    """The guest's files as a tree, owned as they will be in the guest."""
    suite, sources = await debian_sources()
    progress("installing Debian", 0.05)
    os.chmod(scratch, 0o755)  # apt downloads as a user of its own  # noqa: S103
    tree = scratch / "tree"
    await run(
        [
            # What mmdebstrap mounts goes with this namespace, however it ends: else a killed one would leave /dev in a
            # tree that is about to be deleted.
            *("unshare", "--mount", "--propagation", "slave"),
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"),
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            f"--include={','.join(PACKAGES)}",
            f'--essential-hook=sh {shlex.quote(str(_before()))} "$1"',
            f'--customize-hook=sh {shlex.quote(str(_after()))} "$1" {filesystem}',
            suite,
            str(tree),
            *sources,
        ],
        timeout=BUILD_TIMEOUT,
        env={**os.environ, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(ext4.EPOCH)},
    )
    for folder in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        # Apt's own user's, if it could reach this tree; in the guest, apt gives them to it at its first download.
        os.chown(tree / folder, 0, 0)
    return tree


async def _disk(scratch: Path, tree: Path, filesystem: uuid.UUID, progress: Progress) -> Path:
    """A sparse raw disk: GRUB, one partition from 1 MiB to the end, ext4 with the tree in it."""
    progress("making the file system", 0.75)
    disk = scratch / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    # The signature is fixed, so that the partition's PARTUUID is too.
    table = f"label: dos\nlabel-id: 0x{filesystem.hex[:8]}\nstart={grub.FIRST_SECTOR}, type=83, bootable\n"
    await run(["sfdisk", "--quiet", str(disk)], input=table.encode())
    await ext4.make(disk, grub.FIRST_SECTOR * grub.SECTOR, tree, filesystem)
    await grub.install(disk, scratch)
    return disk


async def _installed(tree: Path) -> dict[str, str]:
    """The version of each package in the tree."""
    program = shutil.which("dpkg-query")
    if program is None:
        raise HostError("there is no dpkg-query on this machine", field="image")
    listed = await run([program, f"--admindir={tree / 'var/lib/dpkg'}", "-W", "-f", "${Package} ${Version}\\n"])
    return dict(re.findall(r"^(\S+) (\S+)$", listed.text, re.M))
