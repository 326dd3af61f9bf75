"""Builds what `topology` planned: namespaces, bridges, wires, addresses, rates. Undone by deleting the namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from serai.lab.topology import Plan, Wire
from serai.lib import namespace, netlink


async def build(plan: Plan, env: Mapping[str, str]) -> None:
    """Make the lab's network namespaces with all links up; `env` marks the programs that do it as the lab's.

    Raises HostError, ProcessError; what was made stays then.
    """
    # The first by itself: it may have to prepare /run/netns, which two at once would do twice.
    first, *others = [plan.netns(node) for node in plan.nodes]
    await namespace.create(first, env=env)
    async with asyncio.TaskGroup() as group:
        for name in others:
            group.create_task(namespace.create(name, env=env))
    await namespace.in_netns(plan.netns("net"), lambda: _wire(plan))
    for node in plan.nodes:
        wires = [wire for wire in plan.wires if wire.node == node]
        if wires:
            await namespace.in_netns(plan.netns(node), lambda ends=wires: _furnish(ends))  # type: ignore[misc] # a default argument binds the loop's value


def _wire(plan: Plan) -> None:
    """In the fabric: the bridges, and a port for each wire."""
    for segment in plan.segments:
        netlink.add_bridge(segment.name, mac=segment.mac, mtu=segment.mtu)
        netlink.set_link_sync(segment.name, up=True)
    for wire in plan.wires:
        netlink.add_veth(wire.port, wire.link, peer_netns=plan.netns(wire.node))
        netlink.set_link_sync(wire.port, mtu=wire.mtu, master=wire.segment, up=True)
        if wire.rate is not None:
            netlink.shape(wire.port, wire.rate)


def _furnish(wires: list[Wire]) -> None:
    """In a node: its links, with the address on the bridge where the link has one."""
    for wire in wires:
        netlink.set_link_sync(wire.link, mac=wire.mac, mtu=wire.mtu)
        if wire.bridge is not None:
            # The uplink's own MAC, pinned: else the first tap would change it.
            netlink.add_bridge(wire.bridge, mac=wire.mac, mtu=wire.mtu)
            netlink.set_link_sync(wire.link, master=wire.bridge)
            netlink.set_link_sync(wire.bridge, up=True)
        netlink.set_link_sync(wire.link, up=True)
        netlink.add_address(wire.bridge or wire.link, wire.address)
        if wire.rate is not None:
            netlink.shape(wire.link, wire.rate)
