"""`serai vm` on the standing lab: create, look, start and stop, move, console, ssh; Ctrl-C before a long job."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lib import process
from serai.lib.ids import new_id
from serai.schema.job import JobState
from serai.schema.vm import VmState, VmStop

from .cli import Serai, misused, refused
from .terminal import CTRL_C, Shell, Terminal

SMALL = ("--image", "tiny", "--memory", "128M", "--network", "lan", "--disk", "shared0:32M", "--restart", "never")
SLOW = ("--image", "tiny", "--memory", "256M", "--network", "lan", "--cmdline", "serai.mem=300:150", "--host", "h1")
"""A guest that dirties 150 MB at 300 MB/s: over 1 Gbit/s its move is in pre-copy until it is cancelled."""


@pytest.fixture
def serai(lab: Lab) -> Serai:
    return Serai(lab.name)


def named(lab: Lab) -> str:
    """A new VM's name; whatever becomes of it is deleted at the end."""
    name = f"t{new_id()[:6]}"
    lab.vms.append(name)
    return name


async def test_create_and_look_at_it_in_every_form(lab: Lab, serai: Serai) -> None:
    name = named(lab)
    words = ("--label", f"mark={name}", "--label", "tier=web", "--description", "A line for people")
    vm = (await serai.well("vm", "create", name, *SMALL, *words, "-o", "json")).json
    assert (vm["kind"], vm["name"], vm["status"]["state"]) == ("vm", name, "running")
    assert vm["labels"] == {"mark": name, "tier": "web"}
    assert vm["description"] == "A line for people"
    why = vm["status"]["placement"]
    assert why.startswith("fewest committed resources of 3 hosts: "), why
    host, address, mac = vm["status"]["host"], vm["spec"]["vnics"][0]["ip"], vm["spec"]["vnics"][0]["mac"]

    query = ("vm", "list", "--label", f"mark={name}")
    head, row = (await serai.well(*query)).rows
    assert head == ["NAME", "STATE", "HOST", "CPUS", "MEMORY", "ADDRESSES", "IMAGE"]
    assert row == [name, "running", host, "1", "128M", address, "tiny"]
    (wide,) = (await serai.well(*query, "-o", "wide")).rows[1:]
    assert {"shared0:32M", mac, "tcg", f"mark={name},tier=web", vm["id"]} <= set(wide)
    assert [item["id"] for item in (await serai.well(*query, "-o", "json")).json] == [vm["id"]]
    documents = YAML(typ="safe").load_all((await serai.well(*query, "-o", "yaml")).out)
    assert [item["id"] for item in documents] == [vm["id"]]
    assert (await serai.well(*query, "-o", "name")).out == f"{name}\n"
    assert name in (await serai.well("vm", "list", "--host", host, "--state", "running", "-o", "name")).out.split()
    assert name not in (await serai.well("vm", "list", "--state", "stopped", "-o", "name")).out.split()
    none = await serai.well("vm", "list", "--label", f"mark={name}x")
    assert none.err == "No vm matches.\n"

    lines = dict(line.split(maxsplit=1) for line in (await serai.well("vm", "show", name)).out.splitlines())
    assert (lines["State"], lines["Description"], lines["Placed"]) == ("running", "A line for people", why)
    assert (await serai.well("vm", "show", vm["id"], "-o", "name")).out == f"{name}\n"
    shown = (await serai.well("vm", "show", name, "-o", "json")).json
    assert shown["spec"] == vm["spec"]
    assert YAML(typ="safe").load((await serai.well("vm", "show", name, "-o", "yaml")).out)["spec"] == vm["spec"]


async def test_create_says_where_and_why_or_only_defines_it_or_only_begins(lab: Lab, serai: Serai) -> None:
    defined, begun = named(lab), named(lab)
    ran = await serai.well("vm", "create", defined, *SMALL, "--host", "h2", "--no-start")
    assert ran.out.startswith(f"vm {defined} created: "), ran.out
    assert " on h2 at 10.77.0." in ran.out, ran.out
    assert ran.out.endswith("(asked for by name)\n"), ran.out
    assert not any((lab.qemus(await lab.vm(defined))).values())
    ran = await serai.well("vm", "create", begun, *SMALL, "--no-wait")
    job = ran.out.strip()
    assert ran.err == f"Started. Watch it: serai job wait {job}\n"
    await serai.well("job", "wait", job)
    assert (await lab.vm(begun)).status.state is VmState.RUNNING


async def test_creations_that_cannot_be(lab: Lab, serai: Serai) -> None:
    taken = named(lab)
    await serai.well("vm", "create", taken, *SMALL, "--no-start")
    address = str((await lab.vm(taken)).spec.vnics[0].ip)
    tiny = ("--image", "tiny", "--memory", "128M")
    for words, field, value, remedy in (
        ((taken, *tiny), "name", taken, "Choose another name."),
        (("No_Name", *tiny), "name", "No_Name", "Use lower-case letters"),
        (("never", "--image", "none"), "spec.image", "none", "serai image list"),
        (("never", *tiny, "--cpus", "0"), "spec.cpus", "0", "Use at least 1."),
        (("never", "--image", "tiny", "--memory", "16M"), "spec.memory", "16M", "Use at least 32M."),
        (("never", "--image", "tiny", "--memory", "lots"), "spec.memory", "lots", "Write it like"),
        (("never", *tiny, "--disk", "nowhere:1G"), "spec.disks[0].pool", "nowhere", "serai pool list"),
        (("never", *tiny, "--disk", "shared0:9T"), "spec.disks[0].size", "9T", "Ask for less"),
        (("never", *tiny, "--disk", "volume=none"), "spec.disks[0].volume", "none", "serai volume list"),
        (("never", *tiny, "--disk", f"volume={taken}-disk0"), "spec.disks[0].volume", f"{taken}-disk0", "Take it"),
        (("never", *tiny, "--network", "none"), "spec.vnics[0].network", "none", "serai network list"),
        (("never", *tiny, "--network", f"lan,ip={address}"), "spec.vnics[0].ip", address, "Choose another"),
        (("never", *tiny, "--network", "lan,ip=10.9.9.9"), "spec.vnics[0].ip", "10.9.9.9", "10.77.0."),
        (("never", *tiny, "--network", "lan,mac=01:00:00:00:00:01"), "spec.vnics[0].mac", "01:00:00:00:00:01", "none"),
        (("never", *tiny, "--restart", "often"), "spec.restart", "often", "'on-failure'"),
        (("never", *tiny, "--machine", "pc"), "spec.machine", "pc", "'microvm'"),
    ):
        refused(await serai("vm", "create", *words), field, value, remedy)
    ran = await serai("vm", "create", "never")
    assert (ran.code, "(spec.image). Give an image" in ran.err) == (1, True), ran.err
    misused(await serai("vm", "create"), "NAME")
    misused(await serai("vm", "create", "never", "--disk", "4G"), "is not POOL:SIZE")
    misused(await serai("vm", "create", "never", "--network", "lan,vlan=4"), "is not NETWORK")
    misused(await serai("vm", "create", "never", "--label", "tier"), "is not KEY=VALUE")
    misused(await serai("vm", "create", "never", "--cpus", "two"), "--cpus")
    misused(await serai("vm", "create", "never", "--user-data", "/no/such.yaml"), "/no/such.yaml cannot be read")
    misused(await serai("vm", "create", "never", "--ssh-key", "/etc/hostname"), "holds no public key")
    assert "never" not in (await serai.well("vm", "list", "-o", "name")).out.split()


async def test_stopped_started_paused_reset_and_deleted(lab: Lab, serai: Serai) -> None:
    name = named(lab)
    await serai.well("vm", "create", name, *SMALL)
    vm = await lab.vm(name)
    guest = lab.guest(vm)
    await guest.up()
    refused(await serai("vm", "start", name), "state", "running", "It runs already")
    assert (await serai.well("vm", "pause", name)).out == f"vm {name} paused\n"
    assert (await lab.vm(name)).status.state is VmState.PAUSED
    refused(await serai("vm", "migrate", name, "--to", "h2"), "state", "paused", f"serai vm resume {name}")
    before = await serai.well("vm", "resume", name)
    assert before.out == f"vm {name} resumed\n"
    boot = await guest.boot_id()
    (pid,) = [pid for pids in lab.qemus(vm).values() for pid in pids]
    assert (await serai.well("vm", "reset", name)).out == f"vm {name} reset\n"
    await guest.up()
    assert await guest.boot_id() != boot
    assert [pid] == [pid for pids in lab.qemus(vm).values() for pid in pids]

    assert (await serai.well("vm", "stop", name)).out == f"vm {name} stopped\n"
    assert (await lab.vm(name)).status.reason == "shut down as asked"
    assert not any(lab.qemus(vm).values())
    refused(await serai("vm", "pause", name), "state", "stopped", "Only a running VM can be paused")
    refused(await serai("vm", "resume", name), "state", "stopped", "Only a paused VM can be resumed.")
    refused(await serai("vm", "reset", name), "state", "stopped", f"serai vm start {name}")
    refused(await serai("vm", "migrate", name), "state", "stopped", "start it first")
    refused(await serai("vm", "console", name), "state", "stopped", "Start it")
    host = (await lab.vm(name)).status.host
    assert (await serai.well("vm", "start", name)).out == f"vm {name} started on {host} (it was there before)\n"
    await guest.up()
    boot = await guest.boot_id()
    ran = await serai.well("vm", "restart", name)
    assert ran.out == f"vm {name} restarted on {host} (shut down as asked; it was there before)\n"
    await guest.up()
    assert await guest.boot_id() != boot
    misused(await serai("vm", "stop", name, "--timeout", "soon"), "--timeout")
    refused(await serai("vm", "stop", name, "--timeout", "2000h"), "timeout", "7200000.0", "Use at most 86400")
    ran = await serai("vm", "delete", name)
    refused(ran, "force", "false", "Stop it first, or delete it by force (--force)")
    await serai.well("vm", "stop", name, "--force")
    assert (await lab.vm(name)).status.reason == "stopped by force"
    refused(await serai("vm", "start", name, "--host", "h9"), "host", "h9", "serai host list")
    other = "h2" if host == "h1" else "h1"
    ran = await serai.well("vm", "start", name, "--host", other)
    assert ran.out == f"vm {name} started on {other} (asked for by name)\n"
    await guest.up()
    assert [where for where, pids in lab.qemus(vm).items() if pids] == [other]
    assert (await serai.well("vm", "delete", name, "--force")).out == f"vm {name} deleted\n"
    assert not any(lab.qemus(vm).values())
    assert f"{name}-disk0" not in (await serai.well("volume", "list", "-o", "name")).out.split()
    for verb in ("show", "start", "stop", "restart", "pause", "resume", "reset", "delete", "migrate", "console", "ssh"):
        refused(await serai("vm", verb, name), "vm", name, "serai vm list")


async def test_a_move_tells_its_figures(lab: Lab, serai: Serai) -> None:
    name = named(lab)
    await serai.well("vm", "create", name, *SMALL, "--host", "h1")
    await lab.guest(await lab.vm(name)).up()
    refused(await serai("vm", "migrate", name, "--to", "h1"), "to", "h1", "Name another host.")
    refused(await serai("vm", "migrate", name, "--to", "h9"), "to", "h9", "serai host list")
    ran = await serai.well("vm", "migrate", name, "--to", "h2", "--wait")
    head, *figures = ran.out.splitlines()
    assert head == f"vm {name} moved from h1 to h2"
    titles = [line[2:24].rstrip() for line in figures]
    assert titles == ["Mode", "Total", "Downtime (QEMU's own)", "Rounds", "Sent", "Phases"], figures
    assert not [line for line in figures if "unknown" in line or line.endswith(" -")], figures
    assert "step prepare: done" in ran.err
    assert "Last move" in (await serai.well("vm", "show", name)).out
    result = (await serai.well("vm", "migrate", name, "-o", "json")).json["result"]
    assert result["source"] == "h2"
    assert result["downtime_ms"] is not None
    assert (await lab.vm(name)).status.host == result["destination"]


async def test_a_console_joins_the_guests_shell_and_leaves_it_as_it_was(lab: Lab, serai: Serai) -> None:
    vm = await lab.create()
    async with Shell(serai.argv, vm.name) as shell:
        assert await shell.ask("cat /proc/sys/kernel/random/boot_id") == await lab.guest(vm).boot_id()
        assert "serai.ip=" + str(vm.spec.vnics[0].ip) in await shell.ask("cat /proc/cmdline")
        assert await shell.ask("hostname left; hostname") == "left"
        # Ctrl-C is the guest's, not the program's. The shell itself is to hear it: a program that it has begun to start
        # and not yet put into the foreground would not.
        shell.terminal.type('echo be"gun"; while :; do :; done\n')
        await shell.terminal.until("begun")
        shell.terminal.type(CTRL_C)
        await shell.prompt()
        assert await shell.ask("hostname") == "left"
        refused(await serai("vm", "console", vm.name), "vm", vm.name, "it is for one at a time")
    assert f"Left the console of {vm.name}." in shell.terminal.seen
    async with Shell(serai.argv, vm.name) as shell:
        assert await shell.ask("hostname") == "left"


async def test_a_vm_moves_under_an_open_consoles_feet_and_ends_under_them(lab: Lab, serai: Serai) -> None:
    vm = await lab.create()
    async with Terminal([*serai.argv, "vm", "console", vm.name]) as terminal:
        shell = Shell.on(terminal, vm.name)
        await shell.ready()
        assert await shell.ask("hostname stays; hostname") == "stays"
        for to in ("h2", "h3"):
            await lab.done(await lab.migrate(vm.name, to))
            await shell.prompt()
            assert await shell.ask("hostname") == "stays"
        refused(await serai("vm", "console", vm.name), "vm", vm.name, "it is for one at a time")
        await lab.done(await lab.client.call("vm.stop", vm.name, body=VmStop(force=True)))
        await terminal.until(f"The console of {vm.name} has ended: the VM is stopped: stopped by force.")
        assert await terminal.ended() == 0


async def test_ssh_goes_the_labs_way_and_says_that_nobody_listens(lab: Lab, serai: Serai) -> None:
    vm = await lab.create()
    ran = await serai("vm", "ssh", f"root@{vm.name}", "--", "true")
    assert (ran.code, ran.out) == (255, ""), ran
    assert f"{vm.spec.vnics[0].ip} port 22: Connection refused" in ran.err, ran.err
    alone = named(lab)
    await serai.well("vm", "create", alone, "--image", "tiny", "--memory", "64M", "--no-start")
    refused(await serai("vm", "ssh", alone), "state", "stopped", f"serai vm start {alone}")
    await serai.well("vm", "start", alone)
    refused(await serai("vm", "ssh", alone), "vm", alone, f"serai vm console {alone}")


async def test_ctrl_c_before_a_move_asks_and_cancels_it(lab: Lab, serai: Serai) -> None:
    name = named(lab)
    await serai.well("vm", "create", name, *SLOW)
    await lab.guest(await lab.vm(name)).up()
    async with Terminal([*serai.argv, "vm", "migrate", name, "--to", "h2"]) as terminal:
        await lab.until(name, lambda now: now.status.state is VmState.MIGRATING)
        await terminal.until("▸")
        terminal.type(CTRL_C)
        await terminal.until("Cancel the job, or leave it running?")
        terminal.type("c\n")
        assert await terminal.ended() == 1
        assert "cancelled" in terminal.seen
    after = await lab.until(name, lambda now: now.status.state is VmState.RUNNING)
    assert after.status.host == "h1"


async def test_ctrl_c_without_a_terminal_leaves_the_move_and_says_what_to_do(
    lab: Lab, serai: Serai, tmp_path: Path
) -> None:
    name = named(lab)
    await serai.well("vm", "create", name, *SLOW)
    await lab.guest(await lab.vm(name)).up()
    log = tmp_path / "err"
    child = await process.spawn([*serai.argv, "vm", "migrate", name, "--to", "h2"], stderr=log)
    try:
        await lab.until(name, lambda now: now.status.state is VmState.MIGRATING)
        child.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(child.wait(), PATIENCE) == 130
    finally:
        await child.kill()
    (job,) = (await serai.well("job", "list", "--target", f"vm/{name}", "--state", "running", "-o", "name")).out.split()
    assert f"Watch it: serai job wait {job}   Cancel it: serai job cancel {job}" in log.read_text()
    await serai.well("job", "cancel", job)
    assert (await lab.client.wait_job(job)).state is JobState.CANCELLED
