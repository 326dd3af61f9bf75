"""`serai host edit`: what placement may use of a host, said by people and kept to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.lab import Lab

from serai.lib.ids import new_id

from .cli import Serai, misused, refused

SMALL = ("--image", "tiny", "--memory", "128M", "--no-start")


@pytest.fixture
async def serai(lab: Lab) -> AsyncIterator[Serai]:
    """Whatever a test made of the hosts, they are as they were at its end."""
    program = Serai(lab.name)
    before = {row["name"]: row["spec"] for row in (await program.well("host", "list", "-o", "json")).json}
    try:
        yield program
    finally:
        for name, spec in before.items():
            reserve = ("--memory-reserve", str(spec["memory_reserve"]))
            await program.well("host", "edit", name, "--schedulable", *reserve, "--remove-label", "rack")


async def test_a_host_that_is_not_schedulable_gets_no_new_vms(lab: Lab, serai: Serai) -> None:
    stays = await lab.create(host="h1", disks=[], up=False)
    assert (await serai.well("host", "edit", "h1", "--no-schedulable", "--label", "rack=a")).out == "host h1 changed\n"
    await serai.well("host", "edit", "h2", "--no-schedulable")
    wide = (await serai.well("host", "list", "-o", "wide")).rows
    at = wide[0].index("SCHEDULABLE")
    assert [row[at] for row in wide[1:]] == ["no", "no", "yes"]
    assert "rack=a" in wide[1]

    names = [f"t{new_id()[:6]}" for _ in range(3)]
    lab.vms += names
    ran = await serai.well("vm", "create", names[0], *SMALL)
    assert " on h3" in ran.out, ran.out
    assert "the only host that will do (h1 takes no new VMs; h2 takes no new VMs)" in ran.out, ran.out
    # By name it is taken all the same, and what runs there goes on.
    assert " on h1" in (await serai.well("vm", "create", names[1], *SMALL, "--host", "h1")).out
    assert (await lab.vm(stays.name)).status.host == "h1"
    assert {host: len(pids) for host, pids in lab.qemus(stays).items()} == {"h1": 1, "h2": 0, "h3": 0}

    await serai.well("host", "edit", "h3", "--no-schedulable")
    refused_here = await serai("vm", "create", names[2], *SMALL)
    assert refused_here.code == 1
    assert "h3 takes no new VMs" in refused_here.err
    assert "serai host edit NAME --schedulable" in refused_here.err


async def test_a_reserve_is_kept_from_vms(lab: Lab, serai: Serai) -> None:
    memory = (await serai.well("host", "show", "h1", "-o", "json")).json["status"]["facts"]["memory"]
    for name in ("h1", "h2", "h3"):
        ran = await serai.well("host", "edit", name, "--memory-reserve", str(memory - (192 << 20)), "-o", "name")
        assert ran.out == f"{name}\n"
    name = f"t{new_id()[:6]}"
    refused(await serai("vm", "create", name, "--image", "tiny", "--memory", "256M"), "spec.memory", "256M", "192M or")
    refused(await serai("host", "edit", "h1", "--memory-reserve", "64T"), "memory_reserve", "64T", "Reserve less")
    refused(await serai("host", "edit", "h9", "--schedulable"), "host", "h9", "serai host list")
    misused(await serai("host", "edit", "h1"), "say what to change")
