"""What a VM agent works with: narrow collaborators, handed over once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from serai.drivers.hypervisor.base import Hypervisor
from serai.drivers.network.base import NetworkDriver
from serai.host.records import Records
from serai.lib.clock import Clock
from serai.lib.paths import HostPaths
from serai.lib.tasks import Tasks
from serai.schema.attach import Seed
from serai.schema.commands.migration import Verdict, VerdictAsk
from serai.schema.vm import VmReport


@dataclass(frozen=True)
class Kit:
    """`ask_verdict(host, question)` reads another host's journal over the bus and raises UnavailableError without an
    answer; `disk_path(pool, volume)` and `image_file(image, name)`, of a copy that is sound, are files on this host;
    `write_seed` makes cloud-init's disk, whole or not at all, readable to nobody else.
    """

    host: str
    paths: HostPaths
    clock: Clock
    tasks: Tasks
    records: Records
    hypervisor: Hypervisor
    network: NetworkDriver
    report: Callable[[VmReport], None]
    ask_verdict: Callable[[str, VerdictAsk], Awaitable[Verdict]]
    disk_path: Callable[[str, str], Path]
    image_file: Callable[[str, str], Awaitable[Path]]
    write_seed: Callable[[Seed, Path], Awaitable[None]]
    migration_address: str
    tls_hostname: str
    """The identity of this host's QEMUs, which the other end of a migration checks."""
    qemu_user: str | None = "serai-qemu"
