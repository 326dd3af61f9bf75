"""What tables show of each kind: a readable dict of columns.

A column is a title, a function from the resource to text, and whether only `-o wide` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serai.schema.units import format_duration, format_size
from serai.schema.vm import HOST_SILENT, VmState

DOWN = (VmState.DEFINED, VmState.STOPPED, VmState.CRASHED)
"""States that stay true though the VM's host is silent: nothing but a command from here ends them."""


@dataclass(frozen=True, slots=True)
class Column:
    """`text` gets the resource as its model. `narrow`: not with `-o wide`, where another column says more."""

    title: str
    text: Callable[[Any], str]
    wide: bool = False
    narrow: bool = False


def ago(moment: datetime | None) -> str:
    """How long ago, in short."""
    if moment is None:
        return "-"
    return format_duration(max(0.0, round((datetime.now(UTC) - moment).total_seconds())))


def took(item: Any) -> str:
    """How long a job or step took, or has been taking."""
    if item.started is None:
        return "-"
    return format_duration(((item.ended or datetime.now(UTC)) - item.started).total_seconds())


def labels(item: Any) -> str:
    """`a=b,c=d`."""
    return ",".join(f"{key}={value}" for key, value in sorted(item.labels.items())) or "-"


def _facts(item: Any, name: str) -> str:
    facts = item.status.facts
    return "-" if facts is None else str(getattr(facts, name))


def _host_memory(item: Any) -> str:
    facts = item.status.facts
    return "-" if facts is None else f"{format_size(item.status.memory_committed)}/{format_size(facts.memory)}"


def _host_cpus(item: Any) -> str:
    facts = item.status.facts
    return "-" if facts is None else f"{item.status.cpus_committed}/{facts.cpus}"


def _vm_state(item: Any) -> str:
    status = item.status
    remarks = ["template"] if item.spec.template else []
    if status.state not in DOWN and any(condition.type == HOST_SILENT for condition in status.conditions):
        remarks.append("host offline")
    if any(condition.type.startswith("pending") for condition in status.conditions):
        remarks.append("restart pending")
    return f"{status.state} ({', '.join(remarks)})" if remarks else str(status.state)


def _vm_disk(disk: Any) -> str:
    return disk.volume if disk.volume and not disk.size else f"{disk.pool}:{format_size(disk.size or 0)}"


def _used(item: Any) -> str:
    status = item.status
    return f"{format_size(status.total - status.free)}/{format_size(status.total)}" if status.total else "-"


def _progress(item: Any) -> str:
    if item.progress is not None and not item.state.ended:
        return f"{item.progress:.0%}"
    running = [step.name for step in item.steps if step.state == "running"]
    return running[-1] if running else "-"


def _image_size(item: Any) -> str:
    manifest = item.status.manifest
    if manifest is None:
        return "-"
    return format_size(manifest.virtual_size or sum(file.size for file in manifest.files))


NAME = Column("NAME", lambda item: item.name)
ID = Column("ID", lambda item: item.id, wide=True)
AGE = Column("AGE", lambda item: ago(item.created), wide=True)
LABELS = Column("LABELS", labels, wide=True)
STATE = Column("STATE", lambda item: str(item.status.state))
REASON = Column("REASON", lambda item: item.status.reason or "-", wide=True)
WIDE = (REASON, LABELS, AGE, ID)
"""The last ones of most kinds."""

COLUMNS: dict[str, tuple[Column, ...]] = {
    "vm": (
        NAME,
        Column("STATE", _vm_state),
        Column("HOST", lambda item: item.status.host or "-"),
        Column("CPUS", lambda item: str(item.spec.cpus)),
        Column("MEMORY", lambda item: format_size(item.spec.memory)),
        Column("ADDRESSES", lambda item: ",".join(item.status.addresses) or "-"),
        Column("IMAGE", lambda item: item.spec.image or "-"),
        Column("DISKS", lambda item: ",".join(map(_vm_disk, item.spec.disks)) or "-", wide=True),
        Column("MACS", lambda item: ",".join(vnic.mac or "-" for vnic in item.spec.vnics) or "-", wide=True),
        Column("MACHINE", lambda item: item.spec.machine_type or str(item.spec.machine), wide=True),
        Column("ACCEL", lambda item: item.status.accel or "-", wide=True),
        Column("AUTOSTART", lambda item: "yes" if item.spec.autostart else "no", wide=True),
        *WIDE,
    ),
    "host": (
        NAME,
        STATE,
        Column("CPUS", _host_cpus),
        Column("MEMORY", _host_memory),
        Column("VMS", lambda item: str(item.status.vms)),
        Column("ACCEL", lambda item: _facts(item, "accel")),
        Column("QEMU", lambda item: _facts(item, "qemu_version")),
        Column("SCHEDULABLE", lambda item: "yes" if item.spec.schedulable else "no", wide=True),
        Column("RESERVE", lambda item: format_size(item.spec.memory_reserve), wide=True),
        Column("SEEN", lambda item: ago(item.status.seen), wide=True),
        LABELS,
        ID,
    ),
    "pool": (
        NAME,
        STATE,
        Column("HOST", lambda item: item.spec.host),
        Column("DRIVER", lambda item: str(item.spec.driver)),
        Column("EXPORT", lambda item: str(item.spec.export)),
        Column("USED", _used),
        Column("VOLUMES", lambda item: str(item.status.volumes)),
        Column("PATH", lambda item: item.status.path or item.spec.path or "-", wide=True),
        *WIDE,
    ),
    "volume": (
        NAME,
        STATE,
        Column("POOL", lambda item: item.spec.pool),
        Column("SIZE", lambda item: format_size(item.spec.size)),
        Column("VM", lambda item: item.status.vm or "-"),
        Column("GOES WITH", lambda item: item.status.owner or "-", wide=True),
        Column("IMAGE", lambda item: item.spec.image or "-", wide=True),
        *WIDE,
    ),
    "image": (
        NAME,
        STATE,
        Column("KIND", lambda item: "-" if item.status.manifest is None else str(item.status.manifest.kind)),
        Column("SIZE", _image_size),
        Column("SOURCE", lambda item: str(item.spec.source)),
        Column("HOSTS", lambda item: ",".join(item.status.hosts) or "-"),
        *WIDE,
    ),
    "network": (
        NAME,
        STATE,
        Column("BRIDGE", lambda item: item.spec.bridge),
        Column("SUBNET", lambda item: str(item.spec.subnet)),
        Column("GATEWAY", lambda item: str(item.spec.gateway or "-")),
        Column("ADDRESSES", lambda item: f"{item.status.addresses_used}/{item.status.addresses_total}"),
        Column("MTU", lambda item: str(item.spec.mtu), wide=True),
        Column("HOSTS", lambda item: ",".join(item.status.hosts) or "-", wide=True),
        Column("NO BRIDGE ON", lambda item: ",".join(item.status.without) or "-", wide=True),
        LABELS,
        AGE,
        ID,
    ),
    "job": (
        Column("ID", lambda item: item.id),
        Column("KIND", lambda item: item.kind),
        Column("TARGET", lambda item: item.target),
        Column("STATE", lambda item: str(item.state)),
        Column("AT", _progress),
        Column("TOOK", took),
        Column("AGE", lambda item: ago(item.created)),
        Column("BY", lambda item: item.requested_by, wide=True),
        Column("WAITS FOR", lambda item: item.waits_for or "-", wide=True),
        Column("ERROR", lambda item: "-" if item.error is None else item.error.message, wide=True),
    ),
    "event": (
        Column("SEQ", lambda item: str(item.seq)),
        Column("TIME", lambda item: item.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"), narrow=True),
        Column("TIME", lambda item: item.time.astimezone().isoformat(timespec="milliseconds"), wide=True),
        Column("KIND", lambda item: item.kind),
        Column("RESOURCE", lambda item: item.resource),
        Column("RESOURCE ID", lambda item: item.resource_id or "-", wide=True),
        Column("MESSAGE", lambda item: item.message or "-"),
    ),
    "ability": (
        Column("", lambda item: "ok" if item.found else ("MISSING" if item.required else "missing")),
        Column("ABILITY", lambda item: item.name),
        Column("DETAIL", lambda item: item.detail or "-"),
        Column("REMEDY", lambda item: "-" if item.found else (item.remedy or "-")),
    ),
}
