"""The visible tables of concrete drivers: here, and nowhere else in `host`, they have names."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from serai.drivers.hypervisor.base import Hypervisor
from serai.drivers.hypervisor.qemu import QemuHypervisor
from serai.drivers.image import importer
from serai.drivers.image.base import Build, ImageBuilder, ImageImporter
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.mmdebstrap import DebianBuilder
from serai.drivers.image.tiny import TinyBuilder
from serai.drivers.storage.base import Exporter, PoolDriver
from serai.drivers.storage.directory import DirectoryPool
from serai.drivers.storage.iscsi import TgtExporter
from serai.lib.paths import HostPaths
from serai.lib.qemuimg import QEMU_USER
from serai.schema.commands.pool import OpenPool
from serai.schema.volume import ExportKind, PoolDriverName


def _directory(pool: OpenPool, paths: HostPaths) -> PoolDriver:
    root = Path(pool.path) if pool.path else paths.pools / pool.pool
    # Exported volumes are tgtd's alone; local ones are opened as files by QEMU.
    return DirectoryPool(root, pool=pool.pool, group=QEMU_USER if pool.export is ExportKind.NONE else None)


POOL_DRIVERS: Mapping[PoolDriverName, Callable[[OpenPool, HostPaths], PoolDriver]] = {PoolDriverName.DIR: _directory}

IMAGE_BUILDERS: Mapping[str, Callable[[], ImageBuilder]] = {"tiny": TinyBuilder, "debian": DebianBuilder}


def image_builders(cache: Path) -> Mapping[str, Build]:
    """The recipes; `cache` keeps what they built, by recipe hash, for the whole machine."""
    return {name: functools.partial(ensure_image, make(), cache) for name, make in IMAGE_BUILDERS.items()}


IMAGE_IMPORTER: ImageImporter = importer


def hypervisor(paths: HostPaths, *, allow_unsandboxed: bool) -> Hypervisor:
    """QEMU, run by its own user."""
    return QemuHypervisor(paths.state, user=QEMU_USER, allow_unsandboxed=allow_unsandboxed)


def exporter(paths: HostPaths, address: str) -> Exporter | None:
    """tgtd on the storage address; none where it is not installed."""
    return TgtExporter(paths, address) if shutil.which("tgtd") else None
