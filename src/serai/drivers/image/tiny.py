"""The tiny guest: Debian's cloud kernel and an initramfs of busybox and one program of ours.

It is up in under two seconds without KVM, and it can do what the tests, the demo and the benches need of a guest: echo,
write memory and disks, and say who it is. Built reproducibly: the same inputs give the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from serai.drivers.image.base import Progress, write_manifest
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.packages import kernel_package, module_order, unpack
from serai.lib.process import run
from serai.schema.errors import UnsupportedError
from serai.schema.image import ImageKind, ImageManifest

GUEST = Path(__file__).parent / "guest"
CMDLINE = "console=ttyS0 quiet panic=1 reboot=t"
MODULES = (
    "virtio_pci", "virtio_mmio", "virtio_net", "virtio_blk", "virtio_console", "virtio_rng", "button", "evdev",
    "pvpanic_pci", "pvpanic_mmio", "af_packet",
)  # fmt: skip
BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "mount", "insmod", "ip", "arping", "cat", "sleep", "setsid", "ls", "ps", "dmesg", "poweroff", "reboot",
           "free", "ping", "df", "uptime", "hostname", "echo", "top", "nc", "dd", "md5sum")  # fmt: skip


class TinyBuilder:
    """Builds the tiny guest."""

    name = "tiny"

    async def recipe(self) -> str:
        package, version = await kernel_package()
        digest = hashlib.sha256(f"{package} {version} {CMDLINE} {MODULES} {APPLETS}".encode())
        if not BUSYBOX.exists():
            raise UnsupportedError(
                "busybox is not installed", field="image", remedy="Install the package busybox-static."
            )
        for file in (GUEST / "seraiguest.c", GUEST / "init.sh", Path(__file__), BUSYBOX):
            digest.update(await asyncio.to_thread(file.read_bytes))
        return digest.hexdigest()

    async def build(self, folder: Path, progress: Progress) -> ImageManifest:
        recipe = await self.recipe()
        package, version = await kernel_package()
        with tempfile.TemporaryDirectory(prefix="serai-tiny-") as scratch_name:
            scratch = Path(scratch_name)
            progress("downloading Debian's cloud kernel", 0.1)
            tree = await unpack(package, version, scratch / "kernel")
            progress("compiling the guest's program", 0.5)
            program = scratch / "seraiguest"
            await run(
                [
                    "gcc",
                    "-static",
                    "-O2",
                    "-pthread",
                    "-s",
                    "-Wl,--build-id=none",
                    "-o",
                    str(program),
                    str(GUEST / "seraiguest.c"),
                ],
                timeout=120,
            )
            progress("packing the initramfs", 0.7)
            root = scratch / "root"
            modules = await module_order(next((tree / "lib/modules").iterdir()), MODULES)
            await _fill(root, program, modules)
            (folder / "initrd.img").write_bytes(await _cpio(root))
            (kernel,) = (tree / "boot").glob("vmlinuz-*")
            await asyncio.to_thread(shutil.copyfile, kernel, folder / "vmlinuz")
        progress("done", 1.0)
        return await write_manifest(
            folder,
            name=self.name,
            kind=ImageKind.KERNEL,
            files=["vmlinuz", "initrd.img"],
            cmdline=CMDLINE,
            recipe=recipe,
            packages={package: version},
        )


async def _fill(root: Path, program: Path, modules: list[Path]) -> None:
    for folder in ("bin", "proc", "sys", "dev", "modules", "tmp"):
        (root / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    shutil.copy(program, root / "bin/seraiguest")
    shutil.copy(GUEST / "init.sh", root / "init")
    os.chmod(root / "init", 0o755)  # noqa: S103 - the guest's PID 1
    names = []
    for module in modules:
        target = root / "modules" / module.name
        shutil.copy(module, target)
        if target.suffix == ".xz":  # newer releases ship them compressed; the guest's insmod takes them plain
            await run(["xz", "-d", str(target)])
            target = target.with_suffix("")
        names.append(target.name)
    (root / "modules/order").write_text("".join(f"{name}\n" for name in names), encoding="ascii")


async def _cpio(root: Path) -> bytes:
    """The tree as a compressed newc archive: sorted, owned by root, with times and inode numbers of its own."""
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    for path in [root, *root.rglob("*")]:
        os.utime(path, (0, 0), follow_symlinks=False)
    packed = await run(
        ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible"],
        input="".join(f"{path}\n" for path in paths).encode(),
        cwd=root,
    )
    # Level 1 decompresses as fast as any and keeps the guest's boot short.
    return (await run(["gzip", "-n", "-1"], input=packed.stdout)).stdout


async def ensure_tiny(cache: Path) -> Path:
    """The folder of a tiny image in `cache`, built when it is not there for today's recipe. Safe for two at once."""
    return await ensure_image(TinyBuilder(), cache)


def main() -> None:
    """`python -m serai.drivers.image.tiny CACHE`: print the folder of a tiny image there."""
    sys.stdout.write(f"{asyncio.run(ensure_tiny(Path(sys.argv[1])))}\n")


if __name__ == "__main__":
    main()
