"""What this machine can do for networks, for `serai doctor`."""

from __future__ import annotations

import contextlib
import os
import shutil

from serai.lib import namespace, netlink
from serai.lib.ids import new_id
from serai.schema.errors import SeraiError
from serai.schema.host import Ability


async def probe() -> list[Ability]:
    """Look for each ability by using it, in a network namespace that is thrown away."""
    found = [
        Ability(
            name="tap devices",
            found=os.access("/dev/net/tun", os.R_OK | os.W_OK),
            detail="/dev/net/tun",
            remedy="Load the kernel's tun module, and run as root.",
            required=True,
        ),
        Ability(
            name="nft",
            found=shutil.which("nft") is not None,
            detail="packet filters",
            remedy="Install the package nftables.",
        ),
    ]
    name = f"serai-probe-{new_id()[:6]}"
    try:
        await namespace.create(name)
    except (SeraiError, OSError) as error:
        return [
            *found,
            Ability(name="network namespaces", found=False, detail=str(error), remedy="Run as root.", required=True),
        ]
    try:
        found.append(Ability(name="network namespaces", found=True, detail="ip netns", required=True))
        for ability, detail, action in (
            ("bridges", "Linux bridge", _bridge),
            ("veth pairs", "the lab's links", _veth),
            ("HTB", "rates of links", _htb),
        ):
            problem = await _try(name, action)
            found.append(
                Ability(
                    name=ability,
                    found=not problem,
                    detail=problem or detail,
                    remedy="" if not problem else "Use a kernel that has it, as Debian's does.",
                    required=ability == "bridges",
                )
            )
    finally:
        with contextlib.suppress(SeraiError):
            await namespace.delete(name)
    return found


async def _try(name: str, action: object) -> str:
    if not callable(action):
        raise TypeError("a probe is a function")
    try:
        await namespace.in_netns(name, action)
    except SeraiError as error:
        return error.info.message
    return ""


def _bridge() -> None:
    netlink.add_bridge("probe0", mac="02:00:00:00:00:01")
    netlink.delete_link("probe0")


def _veth() -> None:
    netlink.add_veth("probe1", "probe2")


def _htb() -> None:
    netlink.shape("probe1", 10**9)
