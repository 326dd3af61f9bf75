"""A lab's namespaces and links, as a newcomer meets them: through the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.support import observed
from tests.support.labworld import NOTHING, LabWorld

from serai.lab.state import LabFolder
from serai.lib import netlink
from serai.lib.namespace import in_netns

from .conftest import run


async def test_hosts_reach_one_another_on_both_links(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--bare", "--hosts", "2", "--name", name)
    for node, address in (
        ("h1", "10.77.0.12"), ("h1", "10.78.0.12"),
        ("ctl", "10.77.0.11"), ("ctl", "10.78.0.12"), ("probe", "10.77.0.12"),
    ):  # fmt: skip
        await run("lab", "exec", "--name", name, node, "--", "ping", "-c", "1", "-W", "5", address)
    # A frame of 9000 bytes, not in pieces.
    large = ["ping", "-c", "1", "-W", "5", "-M", "do", "-s", "8972", "10.78.0.12"]
    await run("lab", "exec", "--name", name, "h1", "--", *large)
    away = await run("lab", "exec", "--name", name, "h1", "--", "ping", "-c", "1", "-W", "1", "192.0.2.1", check=False)
    assert away.returncode == 2


async def test_the_hosts_bridge_keeps_its_mac_when_a_port_comes(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--bare", "--hosts", "1", "--name", name)
    space = f"serai-{name}-h1"
    before = (await in_netns(space, observed.links))["br-lan"]

    def add_port() -> None:
        netlink.add_veth("low", "other")
        netlink.set_link_sync("low", mac="02:00:00:00:00:01", master="br-lan", up=True)

    await in_netns(space, add_port)
    after = (await in_netns(space, observed.links))["br-lan"]
    assert (after.mac, after.mtu) == (before.mac, 1500)


async def test_link_rate_shapes_both_ends_of_both_links_of_each_host(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--bare", "--hosts", "2", "--name", name, "--link-rate", "100mbit")
    for node, links in (("h1", ["eth0", "eth1"]), ("net", ["h1-lan", "h1-san", "h2-lan", "h2-san"])):
        for link in links:
            shown = await run("lab", "exec", "--name", name, node, "--", "tc", "class", "show", "dev", link)
            assert "rate 100Mbit" in shown.text
            filters = await run("lab", "exec", "--name", name, node, "--", "tc", "filter", "show", "dev", link)
            assert filters.text.count("flowid 1:20") == 2
    for node, link in (("ctl", "eth0"), ("probe", "eth0")):
        shown = await run("lab", "exec", "--name", name, node, "--", "tc", "class", "show", "dev", link)
        assert shown.text == ""


async def test_a_host_has_its_own_places(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--bare", "--hosts", "2", "--name", name)
    await run("lab", "exec", "--name", name, "h1", "--", "touch", "/var/lib/serai/mine", "/run/serai/mine")
    for place in ("/var/lib/serai", "/run/serai", "/run/tgtd"):
        listed = await run("lab", "exec", "--name", name, "h2", "--", "ls", place)
        assert listed.text == ""
        assert not (Path(place) / "mine").exists()
    assert (LabFolder.of(name).host("h1") / "state" / "mine").exists()
    assert LabFolder.of(name).path.stat().st_mode & 0o777 == 0o700


async def test_exec_passes_input_output_and_exit_code(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--bare", "--hosts", "1", "--name", name)
    told = await run(
        "lab", "exec", "--name", name, "h1", "--", "sh", "-c", "cat; exit 7", check=False, stdin=b"through\n"
    )
    assert (told.returncode, told.stdout) == (7, b"through\n")
    missing = await run("lab", "exec", "--name", name, "h1", "--", "no-such-program", check=False)
    assert missing.returncode == 127
    nobody = await run("lab", "exec", "--name", name, "h9", "--", "true", check=False)
    assert nobody.returncode == 1
    assert b"node: h9" in nobody.stderr
    assert b"h1" in nobody.stderr


async def test_two_labs_side_by_side_do_not_meet(world: LabWorld) -> None:
    one, two = world.name(), world.name()
    await asyncio.gather(*(run("lab", "up", "--bare", "--hosts", "1", "--name", name) for name in (one, two)))
    await run("lab", "exec", "--name", one, "net", "--", "ip", "link", "set", "h1-lan", "down")
    await run("lab", "exec", "--name", two, "probe", "--", "ping", "-c", "1", "-W", "5", "10.77.0.11")
    cut = await run(
        "lab", "exec", "--name", one, "probe", "--", "ping", "-c", "1", "-W", "1", "10.77.0.11", check=False
    )
    assert cut.returncode == 1
    await run("lab", "down", "--name", one)
    await run("lab", "exec", "--name", two, "h1", "--", "ls", "/var/lib/serai")


async def test_a_lab_that_stands_is_not_brought_up_again(world: LabWorld) -> None:
    name = world.name()
    await run("lab", "up", "--bare", "--hosts", "1", "--name", name)
    again = await run("lab", "up", "--bare", "--hosts", "2", "--name", name, check=False)
    assert again.returncode == 1
    assert b"stands already" in again.stderr
    shown = json.loads((await run("lab", "status", "--name", name, "-o", "json")).text)
    assert shown["hosts"] == {"h1": {"lan": "10.77.0.11", "san": "10.78.0.11"}}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--hosts", "65"], 1, b"hosts: 65"),
        (["--hosts", "0"], 2, b"hosts"),
        (["--link-rate", "quick"], 2, b"link-rate"),
        (["--link-rate", "1kbit"], 1, b"link_rate"),
        (["--name", "No/Good"], 1, b"name: No/Good"),
    ],
)
async def test_a_wrong_wish_changes_nothing(world: LabWorld, words: list[str], code: int, said: bytes) -> None:
    refused = await run(
        "lab", "up", "--bare", *words, *([] if "--name" in words else ["--name", world.name()]), check=False
    )
    assert refused.returncode == code
    assert said in refused.stderr
    assert world.left() == NOTHING


async def test_a_lab_that_is_not_there(world: LabWorld) -> None:
    name = world.name()
    for words in (["status"], ["exec", "h1", "true"], ["probe", "10.77.0.11"]):
        refused = await run("lab", words[0], "--name", name, *words[1:], check=False)
        assert refused.returncode == 1
        assert b"serai lab up" in refused.stderr
    assert b"no lab" in (await run("lab", "down", "--name", name)).stdout
