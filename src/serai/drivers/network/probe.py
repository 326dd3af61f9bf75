"""What this machine can do for networks, for `serai doctor`.

Each ability is looked for by using it, in a network namespace that is thrown away: a module that is listed or a device
node that is there proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from serai.drivers.network.links import open_tap
from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.schema.errors import SeraiError
from serai.schema.host import Ability

KERNEL = "Use a kernel that has it, as Debian's does."


@dataclass(frozen=True)
class Trial:
    """`action` fails with a SeraiError where the machine lacks it; `detail` says what it is for."""

    name: str
    detail: str
    action: Callable[[], None]
    required: bool = False
    remedy: str = KERNEL


def _tap() -> None:
    os.close(open_tap("probe0"))


def _bridge() -> None:
    netlink.add_bridge("probe1", mac="02:00:00:00:00:01")
    netlink.set_link_sync("probe1", up=True)


def _veth() -> None:
    netlink.add_veth("probe2", "probe3")


def _htb() -> None:
    netlink.add_bridge("probe4")
    netlink.shape("probe4", 10**9)


def _vxlan() -> None:
    netlink.add_link("probe5", "vxlan", vxlan_id=1, vxlan_port=4789)


def _ifb() -> None:
    netlink.add_link("probe6", "ifb")


TRIALS = (
    Trial("taps", "/dev/net/tun, with virtio headers", _tap, True, "Load the kernel's tun module, and run as root."),
    Trial("bridges", "Linux bridge", _bridge, True),
    Trial("veth pairs", "the lab's links", _veth),
    Trial("HTB", "rates of what leaves a link", _htb),
    Trial("ifb", "rates of what a VM sends", _ifb),
    Trial("VXLAN", "networks across routed hosts", _vxlan),
)


async def probe() -> list[Ability]:
    """All abilities, in an order that does not change."""
    found = [
        Ability(
            name="nft",
            found=shutil.which("nft") is not None,
            detail="packet filters",
            remedy="Install the package nftables.",
        ),
        await asyncio.to_thread(_unfiltered),
    ]
    name = f"serai-probe-{new_id()[:6]}"
    try:
        await namespace.create(name)
    except (SeraiError, OSError) as error:
        with contextlib.suppress(SeraiError):
            await namespace.delete(name)
        return [
            *found,
            Ability(name="network namespaces", found=False, detail=str(error), remedy="Run as root.", required=True),
        ]
    try:
        found.append(Ability(name="network namespaces", found=True, detail="ip netns", required=True))
        return [*found, *[await _try(name, trial) for trial in TRIALS]]
    finally:
        with contextlib.suppress(SeraiError):
            await namespace.delete(name)


async def _try(name: str, trial: Trial) -> Ability:
    problem = ""
    try:
        await namespace.in_netns(name, trial.action)
    except SeraiError as error:
        problem = error.info.message
    return Ability(
        name=trial.name,
        found=not problem,
        detail=problem or trial.detail,
        remedy=trial.remedy if problem else "",
        required=trial.required,
    )


def _unfiltered() -> Ability:
    """Whether VMs' frames pass this machine's bridges whatever its own firewall says."""
    seeing = namespace.filtered_bridges()
    return Ability(
        name="bridges free of iptables",
        found=not seeing,
        detail=f"{', '.join(seeing)} see bridged frames: a policy to drop forwarded packets, as Docker sets, stops VMs"
        if seeing
        else "no firewall rule of the machine's own stops bridged frames",
        remedy="Where VMs cannot be reached: sysctl net.bridge.bridge-nf-call-iptables=0 (and ip6tables, arptables)."
        if seeing
        else "",
    )
