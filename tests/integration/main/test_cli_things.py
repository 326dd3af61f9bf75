"""`serai`'s nouns beside `vm` on the standing lab: pools, volumes, networks, jobs, events, hosts, documents.

Every refusal must say which field, which value and what to do, and exit with 1; wrong usage exits with 2.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab.state import LabFolder
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import run

from .cli import Serai, misused, refused

STATE = Path("/var/lib/serai")


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


@pytest.fixture
async def pool(serai: Serai) -> AsyncIterator[str]:
    """A second pool on a host, without an export."""
    name = f"p{new_id()[:6]}"
    ran = await serai("pool", "create", name, "--host", "h2", "--export", "none")
    assert (ran.code, ran.out) == (0, f"pool {name} created: ready on h2\n"), ran.err
    yield name
    ran = await serai("pool", "delete", name)
    assert ran.code == 0, ran.err


def folder_of(lab: Lab, host: str, path: str) -> Path:
    """Where a path of a host's own is on this machine."""
    return LabFolder.of(lab.name).host(host) / "state" / Path(path).relative_to(STATE)


async def all_refused(serai: Serai, begin: tuple[str, ...], *rows: tuple[tuple[str, ...], str, str, str]) -> None:
    """Each row's words, after those that all begin with, are refused with this field, value and remedy."""
    found = await asyncio.gather(*(serai(*begin, *words) for words, *_ in rows))
    for ran, (_, field, value, remedy) in zip(found, rows, strict=True):
        refused(ran, field, value, remedy)


# --- pools ---


async def test_a_pool_from_its_first_to_its_last_day(lab: Lab, serai: Serai) -> None:
    name = f"p{new_id()[:6]}"
    place = STATE / name
    ran = await serai("pool", "create", name, "--host", "h2", "--path", str(place), "--label", "tier=slow")
    assert (ran.code, ran.out) == (0, f"pool {name} created: ready on h2\n"), ran.err
    (row,) = [row for row in (await serai("pool", "list", "-o", "wide")).rows if row[0] == name]
    assert row[1:5] == ["ready", "h2", "dir", "iscsi"]
    assert str(place) in row
    assert "tier=slow" in row
    shown = (await serai("pool", "show", name, "-o", "json")).json
    assert (shown["kind"], shown["spec"]["path"], shown["status"]["path"]) == ("pool", str(place), str(place))
    assert 0 < shown["status"]["free"] <= shown["status"]["total"]
    assert folder_of(lab, "h2", str(place)).is_dir()

    await all_refused(
        serai,
        ("pool", "create"),
        ((name, "--host", "h2"), "name", name, "Choose another name."),
        (("another", "--host", "h2", "--path", f"/{place}/"), "spec.path", str(place), "Choose another folder."),
        (("another", "--host", "h2", "--path", "srv"), "spec.path", "srv", "Give a path from /"),
        (("another", "--host", "h2", "--path", "/etc"), "path", "/etc", "Give a folder that is empty"),
        (("another", "--host", "h9"), "spec.host", "h9", "serai host list"),
        (("another", "--host", "h2", "--driver", "tape"), "spec.driver", "tape", "Use 'dir'."),
        (("another", "--host", "h2", "--export", "nfs"), "spec.export", "nfs", "Use 'none' or 'iscsi'."),
        (("An_other", "--host", "h2"), "name", "An_other", "Use lower-case letters"),
    )
    assert "another" not in (await serai("pool", "list", "-o", "name")).out.split()

    volume = f"v{new_id()[:6]}"
    assert (await serai("volume", "create", volume, "--pool", name, "--size", "1M")).code == 0
    ran = await serai("pool", "delete", name)
    refused(ran, "pool", name, "Delete them first")
    assert volume in ran.err
    assert (await serai("volume", "delete", volume)).code == 0
    ran = await serai("pool", "delete", name)
    assert (ran.code, ran.out) == (0, f"pool {name} deleted\n"), ran.err
    refused(await serai("pool", "show", name), "pool", name, "serai pool list")
    refused(await serai("pool", "delete", name), "pool", name, "serai pool list")


async def test_a_pool_without_a_path_takes_its_folder_with_it(lab: Lab, serai: Serai, pool: str) -> None:
    name = f"p{new_id()[:6]}"
    assert (await serai("pool", "create", name, "--host", "h2", "--export", "none")).code == 0
    first, second = [(await serai("pool", "show", one, "-o", "json")).json["status"]["path"] for one in (pool, name)]
    assert first != second
    assert folder_of(lab, "h2", second).is_dir()
    assert (await serai("pool", "delete", name)).code == 0
    assert not folder_of(lab, "h2", second).exists()
    assert folder_of(lab, "h2", first).is_dir()


async def test_a_small_pool_gives_no_more_than_it_has(lab: Lab, serai: Serai) -> None:
    name, host = f"p{new_id()[:6]}", "h3"
    place = STATE / name
    inside = namespace.enter_argv(None, LabFolder.of(lab.name).pin(host))
    await run([*inside, "mkdir", str(place)])
    await run([*inside, "mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", str(place)])
    try:
        ran = await serai("pool", "create", name, "--host", host, "--path", str(place))
        assert ran.code == 0, ran.err
        shown = (await serai("pool", "show", name, "-o", "json")).json
        assert shown["status"]["total"] == 8 << 20
        ran = await serai("volume", "create", "big", "--pool", name, "--size", "9M")
        refused(ran, "spec.size", "9M", "Ask for less, delete volumes, or use another pool")
        assert "8M free" in ran.err or "7.9M free" in ran.err or "8.0M free" in ran.err, ran.err
        refused(await serai("volume", "show", "big"), "volume", "big", "serai volume list")
        volume = f"v{new_id()[:6]}"
        assert (await serai("volume", "create", volume, "--pool", name, "--size", "2M")).code == 0
        refused(await serai("volume", "resize", volume, "64M"), "size", "62M", "Ask for less")
        # An odd length is no disk's.
        ran = await serai("volume", "create", "odd", "--pool", name, "--size", "1000")
        refused(ran, "spec.size", "1000", "Give a size such as 4G or 512M.")
        assert (await serai("volume", "delete", volume)).code == 0
        assert (await serai("pool", "delete", name)).code == 0
    finally:
        await run([*inside, "umount", str(place)])
        await run([*inside, "rmdir", str(place)])


# --- volumes ---


async def test_a_volume_from_its_first_to_its_last_day(lab: Lab, serai: Serai, pool: str) -> None:
    name, vm = f"v{new_id()[:6]}", f"t{new_id()[:6]}"
    ran = await serai("volume", "create", name, "--pool", pool, "--size", "4M", "--description", "of the test")
    assert (ran.code, ran.out) == (0, f"volume {name} created: ready\n"), ran.err
    rows = (await serai("volume", "list", "--pool", pool)).rows
    assert rows[1:] == [[name, "ready", pool, "4M", "-"]]
    shown = (await serai("volume", "show", name, "-o", "json")).json
    file = folder_of(lab, "h2", (await serai("pool", "show", pool, "-o", "json")).json["status"]["path"])
    file = file / f"{shown['id']}.raw"
    assert (shown["description"], file.stat().st_size) == ("of the test", 4 << 20)
    refused(await serai("volume", "create", name, "--pool", pool, "--size", "4M"), "name", name, "Choose another name.")

    ran = await serai("volume", "resize", name, "6M")
    assert (ran.code, ran.out) == (0, f"volume {name} resized to 6M\n"), ran.err
    assert file.stat().st_size == 6 << 20
    refused(await serai("volume", "resize", name, "1M"), "size", "1M", "Make a smaller volume")
    assert file.stat().st_size == 6 << 20
    assert (await serai("volume", "resize", name, "6M")).code == 0

    lab.vms.append(vm)
    ran = await serai(
        *("vm", "create", vm, "--image", "tiny", "--memory", "64M", "--no-start"),
        *("--disk", f"volume={name}", "--restart", "never"),
    )
    assert ran.code == 0, ran.err
    assert (await serai("volume", "list", "--vm", vm, "-o", "name")).out == f"{name}\n"
    refused(await serai("volume", "delete", name), "volume", name, f"serai vm edit {vm} --remove-disk")
    ran = await serai("vm", "create", "second", "--image", "tiny", "--disk", f"volume={name}", "--no-start")
    assert ran.code == 1
    assert vm in ran.err
    refused(await serai("pool", "delete", pool), "pool", pool, "Delete them first")
    ran = await serai("vm", "edit", vm, "--remove-disk", "0")
    assert ran.code == 0, ran.err
    assert (await serai("volume", "list", "--vm", vm, "-o", "name")).out == ""
    # It was not made with the VM, and outlives it.
    assert (await serai("vm", "delete", vm)).code == 0
    assert file.exists()
    ran = await serai("volume", "delete", name)
    assert (ran.code, ran.out) == (0, f"volume {name} deleted\n"), ran.err
    assert not file.exists()
    refused(await serai("volume", "delete", name), "volume", name, "serai volume list")


async def test_volumes_that_cannot_be(serai: Serai, pool: str) -> None:
    await all_refused(
        serai,
        ("volume", "create", "never"),
        (("--pool", "nowhere", "--size", "1M"), "spec.pool", "nowhere", "serai pool list"),
        (("--pool", pool, "--size", "0"), "spec.size", "0", "Use more than 0"),
        (("--pool", pool, "--size", "1M", "--image", "none"), "spec.image", "none", "serai image list"),
        (("--pool", pool, "--size", "1M", "--image", "tiny"), "spec.image", "tiny", "Leave it out."),
        (("--pool", pool, "--size", "900T"), "spec.size", "900T", "Ask for less"),
    )
    misused(await serai("volume", "create", "never", "--pool", pool), "--size")
    for size, words in (("much", "Write it like 512M"), ("5Q", "K, M, G or T")):
        ran = await serai("volume", "create", "never", "--pool", pool, "--size", size)
        misused(ran, f"(spec.size: {size})")
        assert words.lower() in ran.err.lower(), ran.err
    misused(await serai("volume", "resize", "never"), "SIZE")
    refused(await serai("volume", "resize", "never", "4M"), "volume", "never", "serai volume list")
    assert (await serai("volume", "list", "--pool", pool)).err == "No volume matches.\n"


# --- networks ---


async def test_a_network_from_its_first_to_its_last_day(lab: Lab, serai: Serai) -> None:
    name, vm = f"n{new_id()[:6]}", f"t{new_id()[:6]}"
    good = ("--bridge", "br-cli", "--subnet", "10.81.0.0/24", "--range", "10.81.0.10-10.81.0.19")
    ran = await serai("network", "create", name, *good, "--gateway", "10.81.0.1", "--mtu", "1400")
    assert (ran.code, ran.out) == (0, f"network {name} created\n"), ran.err
    assert "There is no bridge br-cli on h1, h2, h3: no VM starts on this network." in ran.err
    (row,) = [row for row in (await serai("network", "list")).rows if row[0] == name]
    assert row[1:] == ["missing", "br-cli", "10.81.0.0/24", "10.81.0.1", "0/10"]
    assert (await serai("network", "show", name, "-o", "json")).json["spec"]["mtu"] == 1400

    lan = ("--bridge", "br-lan", "--subnet", "10.77.0.0/24", "--range", "10.77.0.120-10.77.0.130")
    await all_refused(
        serai,
        ("network", "create"),
        ((name, *good), "name", name, "Choose another name."),
        (("other", *lan), "spec.range_start", "10.77.0.120", "Choose a range that does not overlap"),
        (("other", "--bridge", "br-x", "--subnet", "10.82.0.0/99"), "spec.subnet", "10.82.0.0/99", "10.77.0.0/24"),
        (
            ("other", "--bridge", "br-x", "--subnet", "10.82.0.0/32", "--gateway", "10.82.0.0"),
            "spec.range_start",
            "10.82.0.0/32",
            "larger range",
        ),
        (("other", "--bridge", "a bridge", "--subnet", "10.82.0.0/24"), "spec.bridge", "a bridge", "15"),
        (("other", *good, "--mtu", "100"), "spec.mtu", "100", "Use at least 576."),
        (("other", *good, "--gateway", "10.83.0.1"), "spec.gateway", "10.83.0.1", "Give an address in 10.81.0.0/24."),
    )
    misused(await serai("network", "create", "other", *good[:4], "--range", "10.81.0.10"), "is not FIRST-LAST")
    assert "other" not in (await serai("network", "list", "-o", "name")).out.split()

    lab.vms.append(vm)
    ran = await serai(*("vm", "create", vm, "--image", "tiny", "--memory", "64M", "--network", name))
    refused(ran, "spec.vnics", name, "--bridge br-cli")
    ran = await serai(*("vm", "create", vm, "--image", "tiny", "--memory", "64M", "--no-start", "--network", name))
    assert ran.code == 0, ran.err
    assert (await serai("network", "show", name, "-o", "json")).json["status"]["addresses_used"] == 1
    ran = await serai("network", "delete", name)
    refused(ran, "network", name, "serai vm edit --remove-network")
    assert (await serai("vm", "edit", vm, "--remove-network", "0")).code == 0
    ran = await serai("network", "delete", name)
    assert (ran.code, ran.out) == (0, f"network {name} deleted\n"), ran.err
    refused(await serai("network", "delete", name), "network", name, "serai network list")


# --- jobs, events, hosts ---


async def test_jobs_are_listed_shown_and_waited_for(serai: Serai, pool: str) -> None:
    name = f"v{new_id()[:6]}"
    ran = await serai("volume", "create", name, "--pool", pool, "--size", "1M", "--no-wait")
    job = ran.out.strip()
    assert (ran.code, f"serai job wait {job}" in ran.err) == (0, True), ran.err
    ran = await serai("job", "wait", job)
    assert (ran.code, ran.out) == (0, f"volume.create volume/{name} done\n"), ran.err
    rows = (await serai("job", "list", "--target", f"volume/{name}")).rows
    assert [row[:4] for row in rows[1:]] == [[job, "volume.create", f"volume/{name}", "done"]]
    shown = (await serai("job", "show", job, "-o", "json")).json
    assert ([step["state"] for step in shown["steps"]], shown["result"]) == (["done"], {"size": 1 << 20})
    assert "make" in (await serai("job", "show", job)).out
    refused(await serai("job", "cancel", job), "job", job, f"serai job show {job}")
    assert (await serai("volume", "delete", name)).code == 0
    assert job in (await serai("job", "list", "--state", "done", "-o", "name")).out.split()
    for verb in ("show", "cancel", "wait"):
        refused(await serai("job", verb, "0123456789ab"), "job", "0123456789ab", "serai job list")
    refused(await serai("job", "list", "--state", "asleep"), "state", "asleep", "Use ")


async def test_events_are_read_on_from_any_number(lab: Lab, serai: Serai) -> None:
    name = f"n{new_id()[:6]}"
    last = int((await serai("event", "list", "-o", "name")).out.split()[-1])
    watching = asyncio.create_task(serai("event", "watch", "--after", str(last), "--count", "2", "-o", "json"))
    try:
        words = ("network", "create", name, "--bridge", "br-cli", "--subnet", "10.84.0.0/24")
        assert (await serai(*words)).code == 0
        assert (await serai("network", "delete", name)).code == 0
        seen = [json.loads(line) for line in (await asyncio.wait_for(watching, PATIENCE)).out.splitlines()]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert [event["seq"] for event in seen] == [last + 1, last + 2]
    assert [event["kind"] for event in seen] == ["network.created", "network.deleted"]
    assert {event["resource"] for event in seen} == {f"network/{name}"}
    # The same from the list, and from a second watcher that comes later.
    listed = (await serai("event", "list", "--after", str(last), "--limit", "2", "-o", "json")).json
    assert listed == seen
    ran = await serai("event", "watch", "--after", str(last + 1), "--count", "1")
    assert (ran.code, "network.deleted" in ran.out, str(last + 2) in ran.out) == (0, True, True)
    misused(await serai("event", "list", "--after", "-1"), "--after")


async def test_every_event_of_a_thing_calls_it_by_its_name(lab: Lab, serai: Serai) -> None:
    name, volume = f"p{new_id()[:6]}", f"v{new_id()[:6]}"
    last = (await serai("event", "list", "-o", "name")).out.split()[-1]
    assert (await serai("pool", "create", name, "--host", "h2")).code == 0
    assert (await serai("volume", "create", volume, "--pool", name, "--size", "1M")).code == 0
    assert (await serai("volume", "delete", volume)).code == 0
    assert (await serai("pool", "delete", name)).code == 0
    events = (await serai("event", "list", "--after", last, "-o", "json")).json
    for kind in ("pool", "volume"):
        wanted = f"{kind}/{name if kind == 'pool' else volume}"
        found = [event["kind"] for event in events if event["resource"] == wanted]
        assert (found[0], f"{kind}.deleted" in found) == (f"{kind}.created", True), found


async def test_hosts_and_what_they_can_do(serai: Serai) -> None:
    rows = (await serai("host", "list")).rows
    assert [row[:2] for row in rows[1:]] == [["h1", "online"], ["h2", "online"], ["h3", "online"]]
    shown = (await serai("host", "show", "h2", "-o", "json")).json
    assert shown["status"]["facts"]["addresses"] == {
        "management": "10.77.0.12",
        "migration": "10.78.0.12",
        "storage": "10.78.0.12",
    }
    assert "10.77.0.12" in (await serai("host", "show", "h2")).out
    assert (await serai("host", "show", shown["id"], "-o", "name")).out == "h2\n"
    refused(await serai("host", "show", "h9"), "host", "h9", "serai host list")
    ran = await serai("vm", "create", "never", "--image", "tiny", "--host", "h9")
    refused(ran, "spec.host", "h9", "serai host list")
    ran = await serai("vm", "create", "never", "--image", "tiny", "--memory", "8T")
    refused(ran, "spec.memory", "8T", "Ask for ")
    refused(await serai("vm", "show", "never"), "vm", "never", "serai vm list")


async def test_doctor_says_what_this_machine_can_do(serai: Serai) -> None:
    ran = await serai("doctor", "-o", "json")
    assert ran.code == 0, ran.err
    found = {row["name"]: row for row in ran.json}
    assert {row["required"] for row in found.values()} == {True, False}
    for name, row in found.items():
        assert row["found"] or not row["required"], name
        assert row["found"] or row["remedy"], name


# --- documents ---

SITE = """\
kind: vm
name: {vm}
spec:
  image: tiny
  memory: 64M
  running: false
  restart: never
  disks:
    - volume: {volume}
  vnics:
    - network: {network}
---
kind: volume
name: {volume}
spec:
  pool: {pool}
  size: 2M
---
kind: pool
name: {pool}
spec:
  host: h3
---
kind: network
name: {network}
labels:
  tier: test
spec:
  bridge: br-doc
  subnet: 10.85.0.0/24
"""


async def test_documents_make_it_so(lab: Lab, serai: Serai, tmp_path: Path) -> None:
    mark = new_id()[:6]
    names = {"vm": f"t{mark}", "volume": f"v{mark}", "pool": f"p{mark}", "network": f"n{mark}"}
    lab.vms.append(names["vm"])
    file = tmp_path / "site.yaml"
    file.write_text(SITE.format(**names))
    ran = await serai("diff", "-f", str(file))
    assert (ran.code, ran.out.count("+kind") + ran.out.count("(now)")) == (1, 4), ran.err
    # Nothing is made by looking; what others need comes first.
    refused(await serai("vm", "show", names["vm"]), "vm", names["vm"], "serai vm list")
    ran = await serai("apply", "-f", str(file))
    titles = [f"{kind}/{names[kind]}" for kind in ("network", "pool", "volume", "vm")]
    assert (ran.code, ran.out.splitlines()) == (0, [f"{title} created" for title in titles]), ran.err
    ran = await serai("apply", "-f", str(file))
    assert (ran.code, ran.out.splitlines()) == (0, [f"{title} unchanged" for title in titles]), ran.err
    ran = await serai("diff", "-f", str(file))
    assert (ran.code, ran.out) == (0, ""), ran.err

    file.write_text(SITE.format(**names).replace("memory: 64M", "memory: 96M").replace("size: 2M", "size: 3M"))
    ran = await serai("diff", "-f", str(file))
    assert ran.code == 1
    for line in ("-  memory: 64M", "+  memory: 96M", "-  size: 2M", "+  size: 3M"):
        assert line in ran.out.splitlines(), ran.out
    ran = await serai("apply", "-f", "-", given=file.read_text())
    assert ran.code == 0, ran.err
    assert f"vm/{names['vm']} changed (memory)" in ran.out
    assert f"volume/{names['volume']} changed (size)" in ran.out
    assert (await serai("vm", "show", names["vm"], "-o", "json")).json["spec"]["memory"] == 96 << 20
    # What `show` prints is a document.
    printed = await serai("vm", "show", names["vm"], "-o", "yaml")
    ran = await serai("apply", "-f", "-", given=printed.out)
    assert (ran.code, ran.out) == (0, f"vm/{names['vm']} unchanged\n"), ran.err

    text = SITE.format(**names).replace("host: h3", "host: h2")
    file.write_text(text)
    at = text.splitlines().index("  host: h2") + 1
    ran = await serai("apply", "-f", str(file))
    refused(ran, "spec.host", "h2", "Leave it as it is, or delete")
    assert f"{file}:{at}:" in ran.err
    for kind in ("vm", "volume", "pool", "network"):
        ran = await serai(kind, "delete", names[kind])
        assert ran.code == 0, ran.err


WRONG = (
    ("kind: network\nname: a\nspec:\n  bridge: [br\n", 5, "this is not YAML", "Look at the indentation"),
    ("kind: pool\nname: a\nspec:\n  hots: h1\n", 4, "(spec.hots: h1)", "Did you mean 'host'?"),
    ("kind: pool\nname: a\nspec: {}\n", 3, "'host' is missing (spec.host)", "Give host."),
    ("kind: rack\nname: a\n", 1, "(kind: rack)", "Use one of network, pool"),
    ("kind: pool\nname: a\nspec: {host: h1}\n---\nkind: volume\nname: A\n", 6, "(name: A)", "Use lower-case"),
    ("kind: pool\nname: a\nname: b\nspec: {host: h1}\n", 3, "'name' is given twice", "Keep one of them."),
    ("kind: image\nname: a\nspec:\n  source: upload\n", 4, "(spec.source: upload)", "serai image import"),
)
"""Text, the line of what is wrong, what is said of it, and the remedy."""


@pytest.mark.parametrize("verb", ["apply", "diff"])
async def test_a_wrong_document_names_its_line_and_changes_nothing(serai: Serai, tmp_path: Path, verb: str) -> None:
    good = "kind: network\nname: never\nspec: {bridge: br-x, subnet: 10.86.0.0/24}\n---\n"
    files = [tmp_path / f"wrong{number}.yaml" for number in range(len(WRONG))]
    for file, (text, *_) in zip(files, WRONG, strict=True):
        file.write_text(good + text)
    found = await asyncio.gather(*(serai(verb, "-f", str(file)) for file in files))
    for ran, file, (_, line, says, remedy) in zip(found, files, WRONG, strict=True):
        assert (ran.code, ran.out) == (1, ""), ran.out
        assert ran.err.startswith(f"serai: {file}:{line + good.count(chr(10))}: "), ran.err
        assert says in ran.err, ran.err
        assert remedy in ran.err, ran.err
    assert "never" not in (await serai("network", "list", "-o", "name")).out.split()


# --- usage ---


MISUSED = (
    (["rack", "list"], "No such command 'rack'"),
    (["pool", "burn"], "No such command 'burn'"),
    (["pool", "create", "x"], "--host"),
    (["pool", "list", "-o", "xml"], "xml"),
    (["pool", "list", "--colour"], "--colour"),
    (["apply"], "-f"),
    (["apply", "-f", "/no/such.yaml"], "/no/such.yaml cannot be read"),
    (["pool", "create", "x", "--host", "h1", "--label", "tier"], "is not KEY=VALUE"),
    (["completion", "tcsh"], "tcsh"),
)


async def test_wrong_usage_exits_with_2(serai: Serai) -> None:
    found = await asyncio.gather(*(serai(*words) for words, _ in MISUSED))
    for ran, (_, says) in zip(found, MISUSED, strict=True):
        misused(ran, says)


async def test_contexts_and_completion(lab: Lab, serai: Serai) -> None:
    for shell in ("bash", "zsh", "fish"):
        ran = await serai("completion", shell)
        assert (ran.code, "_SERAI_COMPLETE" in ran.out, ran.err) == (0, True, "")
    assert (await serai("context", "show")).out.startswith(lab.name)
    refused(await Serai("no-such-context")("pool", "list"), "context", "no-such-context", f"Known are: {lab.name}.")
