"""Verbs against the fake API: what they send and what they print."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.fake_api import FakeApi

from serai.app.cli.vm_reach import ssh_argv
from serai.client.context import Context
from serai.schema.errors import HostError, UnavailableError
from serai.schema.vm import Vm

Serai = Callable[..., Any]


def test_create_sends_what_was_asked_and_prints_where_it_runs(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\n")
    ran = serai(
        *("vm", "create", "web1", "--image", "debian", "--cpus", "2", "--memory", "768M", "--disk", "shared0:4G"),
        *("--disk", "volume=data1", "--network", "lan,ip=10.77.0.120", "--ssh-key", "ssh-ed25519 AAAA me"),
        *("--user-data", str(data), "--label", "tier=web", "--no-autostart", "--restart", "always", "--host", "h1"),
    )
    assert ran.code == 0, ran.err
    assert ran.out == "vm web1 created: running on h1\n"
    sent = next(body for name, _, body in api.requests if name == "vm.create")
    assert sent["labels"] == {"tier": "web"}
    assert sent["spec"] == {
        "image": "debian",
        "machine": "q35",
        "cpus": 2,
        "memory": 768 << 20,
        "disks": [{"pool": "shared0", "size": 4 << 30}, {"volume": "data1"}],
        "vnics": [{"network": "lan", "ip": "10.77.0.120"}],
        "cloud_init": {"ssh_keys": ["ssh-ed25519 AAAA me"], "user_data": "#cloud-config\n"},
        "cmdline": "",
        "host": "h1",
        "running": True,
        "restart": "always",
        "autostart": False,
        "autostart_order": 0,
    }


def test_create_prints_the_new_resource_or_the_job(serai: Serai, api: FakeApi) -> None:
    assert serai("vm", "create", "a", "-o", "json").json["kind"] == "vm"
    assert serai("vm", "create", "b", "-o", "name").out == "b\n"
    job = serai("vm", "create", "c", "--no-wait", "-o", "json").json
    assert (job["kind"], job["target"]) == ("vm.create", "vm/c")
    ran = serai("vm", "create", "d", "--no-wait")
    assert ran.out.strip() in api.jobs
    assert "serai job wait" in ran.err


def test_a_taken_name_changes_nothing(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {})
    ran = serai("vm", "create", "web1")
    assert ran.code == 1
    assert "a vm of this name exists (name: web1). Choose another name." in ran.err
    assert api.jobs == {}


def test_a_list_in_every_form(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {"memory": 768 << 20, "image": "debian"}, {"state": "running", "host": "h1"})
    api.add("vm", "web2", {}, {"state": "stopped"})
    rows = [line.split() for line in serai("vm", "list").out.splitlines()]
    assert rows[0] == ["NAME", "STATE", "HOST", "CPUS", "MEMORY", "ADDRESSES", "IMAGE"]
    assert rows[1] == ["web1", "running", "h1", "1", "768M", "-", "debian"]
    assert "ACCEL" in serai("vm", "list", "-o", "wide").out
    assert serai("vm", "list", "-o", "name").out == "web1\nweb2\n"
    assert [vm["name"] for vm in serai("vm", "list", "-o", "json").json] == ["web1", "web2"]
    assert [vm["kind"] for vm in YAML(typ="safe").load_all(serai("vm", "list", "-o", "yaml").out)] == ["vm", "vm"]
    assert serai("vm", "list", "--limit", "1", "-o", "name").out == "web1\n"


def test_json_is_the_resource_as_it_travels(serai: Serai, api: FakeApi) -> None:
    item = api.add("vm", "web1", {}, {"state": "running"})
    shown = serai("vm", "show", "web1", "-o", "json").json
    assert Vm.model_validate(shown) == Vm.model_validate(item)
    assert list(shown)[:4] == ["kind", "name", "id", "generation"]


def test_migrate_prints_the_figures(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {}, {"state": "running", "host": "h1"})
    ran = serai("vm", "migrate", "web1", "--to", "h2", "--wait")
    assert ran.out.splitlines()[0] == "vm web1 moved from h1 to h2"
    assert "Downtime (QEMU's own) 12ms" in ran.out
    assert "Rounds                3" in ran.out
    assert "job " in ran.err
    job = serai("vm", "migrate", "web1", "--to", "h3", "-o", "json").json
    assert job["state"] == "done"
    assert {"mode", "total_s", "downtime_ms", "rounds", "bytes_sent", "phases"} <= set(job["result"])


def test_a_failed_job_is_the_error_it_failed_with(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {}, {"state": "running"})
    api.failure = HostError("QEMU said no", field="vm", value="web1", remedy="Look at its log.")
    ran = serai("vm", "migrate", "web1")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "serai: QEMU said no (vm: web1). Look at its log."
    assert "step work: failed" in ran.err


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "reset", "pause", "resume", "delete"])
def test_life(serai: Serai, api: FakeApi, verb: str) -> None:
    api.add("vm", "web1", {}, {"state": "running"})
    ran = serai("vm", verb, "web1")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("vm web1 ")
    assert f"vm.{verb}" in [request[0] for request in api.requests]


def test_start_takes_a_host(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {})
    serai("vm", "start", "web1", "--host", "h2")
    assert next(body for name, _, body in api.requests if name == "vm.start") == {"host": "h2"}


def test_stop_takes_a_time(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {})
    serai("vm", "stop", "web1", "--timeout", "2m", "--force")
    assert next(body for name, _, body in api.requests if name == "vm.stop") == {"force": True, "timeout": 120.0}
    assert serai("vm", "stop", "web1", "--timeout", "soon").code == 2


def test_stop_says_when_it_was_by_force(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {})
    api.results["vm.stop"] = {"state": "stopped", "reason": "stopped by force"}
    assert "(by force: the guest did not shut down by itself)" in serai("vm", "stop", "web1").out
    assert serai("vm", "stop", "web1", "--force").out == "vm web1 stopped (by force)\n"
    api.results["vm.stop"] = {"state": "stopped", "reason": "shut down as asked"}
    assert serai("vm", "stop", "web1").out == "vm web1 stopped\n"


def test_a_job_that_has_ended_is_not_asked_to_stop(serai: Serai, api: FakeApi) -> None:
    serai("vm", "create", "web1")
    ran = serai("job", "cancel", next(iter(api.jobs)))
    assert (ran.code, "has ended" in ran.err) == (1, True)


def test_edit_changes_what_it_names(serai: Serai, api: FakeApi) -> None:
    vnic = {"network": "lan", "mac": "52:54:00:00:00:01", "ip": "10.77.0.100"}
    item = api.add("vm", "web1", {"vnics": [vnic, {"network": "dmz"}]})
    item["labels"] = {"a": "1", "b": "2"}
    ran = serai("vm", "edit", "web1", "--cpus", "4", "--remove-network", "1", "--remove-label", "a", "--label", "c=3")
    assert ran.out == "vm web1 changed\n", ran.err
    sent = next(body for name, _, body in api.requests if name == "vm.edit")
    assert sent == {"cpus": 4, "vnics": [vnic], "labels": {"b": "2", "c": "3"}}
    assert serai("vm", "edit", "web1").code == 2
    assert serai("vm", "edit", "web1", "--remove-disk", "0").code == 2


def test_disks_and_vnics_are_removed_by_name_too(serai: Serai, api: FakeApi) -> None:
    disks = [{"pool": "p", "size": 1 << 30, "volume": name, "keep": False} for name in ("a", "b", "c")]
    vnics = [{"network": "lan", "mac": f"52:54:00:00:00:0{number}"} for number in (1, 2)]
    api.add("vm", "web1", {"disks": disks, "vnics": vnics})
    words = ("--remove-disk", "b", "--remove-disk", "0", "--remove-network", "52:54:00:00:00:02")
    ran = serai("vm", "edit", "web1", *words)
    assert ran.code == 0, ran.err
    sent = next(body for name, _, body in api.requests if name == "vm.edit")
    assert ([disk["volume"] for disk in sent["disks"]], sent["vnics"]) == (["c"], vnics[:1])
    ran = serai("vm", "edit", "web1", "--remove-disk", "z")
    assert (ran.code, "it has: 0 (c)" in ran.err) == (2, True)


def test_edit_sends_what_the_guest_reads_at_its_start(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("#cloud-config\n")
    api.add("vm", "web1", {"cloud_init": {"ssh_keys": ["ssh-ed25519 OLD"], "user_data": ""}})
    assert serai("vm", "edit", "web1", "--user-data", str(data), "--cmdline", "quiet").code == 0
    sent = next(body for name, _, body in api.requests if name == "vm.edit")
    seed = {"ssh_keys": ["ssh-ed25519 OLD"], "user_data": "#cloud-config\n"}
    assert sent == {"cmdline": "quiet", "cloud_init": seed}
    serai("vm", "create", "web2", "--max-cpus", "4")
    assert next(body for name, _, body in api.requests if name == "vm.create")["spec"]["max_cpus"] == 4


def test_rename_and_clone(serai: Serai, api: FakeApi) -> None:
    api.add("vm", "web1", {})
    assert serai("vm", "clone", "web1", "web2").out == "vm web1 cloned to web2\n"
    assert serai("vm", "rename", "web1", "web9").out == "vm web1 is now web9\n"
    assert "web9" in api.resources["vm"]


def test_apply_and_diff(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "kind: vm\nname: web1\nspec: {cpus: 1}\n---\n"
        "kind: network\nname: lan\nspec: {bridge: br-lan, subnet: 10.77.0.0/24}\n"
    )
    assert serai("diff", "-f", str(file)).code == 1
    assert serai("apply", "-f", str(file)).out == "network/lan created\nvm/web1 created\n"
    assert serai("apply", "-f", str(file)).out == "network/lan unchanged\nvm/web1 unchanged\n"
    same = serai("diff", "-f", str(file))
    assert (same.code, same.out) == (0, "")
    file.write_text("kind: vm\nname: web1\nspec: {cpus: 2}\n")
    assert "+  cpus: 2" in serai("diff", "-f", str(file)).out
    assert serai("apply", "-f", str(file)).out == "vm/web1 changed (cpus)\n"


def test_apply_changes_nothing_if_any_document_is_wrong(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("kind: vm\nname: web1\nspec: {}\n---\nkind: vm\nname: web2\nspec:\n  memory: 1K\n")
    ran = serai("apply", "-f", str(file))
    assert ran.code == 1
    assert f"{file}:8: 'memory' is too small (spec.memory: 1K). Use at least 32M." in ran.err
    assert api.jobs == {}


def test_apply_asks_for_all_that_is_named_before_it_changes_anything(
    serai: Serai, api: FakeApi, tmp_path: Path
) -> None:
    api.add("image", "tiny", {"source": "build"})
    file = tmp_path / "site.yaml"
    file.write_text(
        "kind: vm\nname: web1\nspec:\n  image: tiny\n  vnics:\n  - network: n2\n  - network: n3\n---\n"
        "kind: network\nname: n2\nspec: {bridge: br-n2, subnet: 10.78.0.0/24}\n"
    )
    for verb in ("apply", "diff"):
        ran = serai(verb, "-f", str(file))
        assert ran.code == 1
        assert f"{file}:7: there is no such network (spec.vnics[1].network: n3)." in ran.err
    assert "network" not in api.resources
    file.write_text(file.read_text().replace("  - network: n3\n", ""))
    assert serai("apply", "-f", str(file)).out == "network/n2 created\nvm/web1 created\n"


def test_apply_says_which_line_was_refused_and_what_waits(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    waits = {"type": "pending-restart", "message": "memory: memory cannot be changed live"}
    api.add("vm", "web1", {"memory": 128 << 20}, {"state": "running", "conditions": [waits]})
    file = tmp_path / "site.yaml"
    file.write_text("kind: vm\nname: web1\nspec:\n  cpus: 1\n  memory: 256M\n")
    ran = serai("apply", "-f", str(file))
    assert ran.out in ("vm/web1 changed (cpus, memory)\n", "vm/web1 changed (memory)\n")
    assert "vm/web1: pending-restart: memory: memory cannot be changed live" in ran.err
    api.failure = HostError("no host has that much", field="memory", value="512M")
    file.write_text("kind: vm\nname: web1\nspec:\n  cpus: 1\n  memory: 512M\n")
    ran = serai("apply", "-f", str(file))
    assert f"{file}:5: no host has that much (memory: 512M)" in ran.err


def test_importing_a_file_checks_it_first(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "Debian_12.qcow2"
    file.write_bytes(b"x" * 3_000_000)
    ran = serai("image", "import", str(file), "--sha256", "0" * 64)
    assert ran.code == 1
    assert "sha256" in ran.err
    assert api.requests == []
    ran = serai("image", "import", str(file), "--sha256", hashlib.sha256(file.read_bytes()).hexdigest())
    assert ran.out == "image debian-12 imported: creating\n", ran.err
    assert len(api.uploads["debian-12"]) == 3_000_000
    assert "100%" in ran.err
    sent = next(body for name, _, body in api.requests if name == "image.create")
    assert (sent["spec"]["source"], sent["spec"]["format"]) == ("upload", "qcow2")


def test_a_host_edit_sends_what_it_names(serai: Serai, api: FakeApi) -> None:
    api.add("host", "h1", {})["labels"] = {"rack": "a", "old": "1"}
    words = ("--no-schedulable", "--memory-reserve", "2G", "--label", "rack=b", "--remove-label", "old")
    ran = serai("host", "edit", "h1", *words)
    assert ran.out == "host h1 changed\n", ran.err
    sent = next(body for name, _, body in api.requests if name == "host.edit")
    assert sent == {"schedulable": False, "memory_reserve": 2 << 30, "labels": {"rack": "b"}}
    assert serai("host", "edit", "h1", "--schedulable", "-o", "json").json["spec"]["schedulable"] is True
    wide = serai("host", "list", "-o", "wide").out.splitlines()
    assert wide[0].split()[7:9] == ["SCHEDULABLE", "RESERVE"]
    assert wide[1].split()[7:9] == ["yes", "2G"]
    assert serai("host", "edit", "h1").code == 2
    assert serai("host", "edit", "h9", "--schedulable").code == 1


def test_uplinks_of_the_only_host(serai: Serai, api: FakeApi) -> None:
    api.add("host", "h1", {})
    assert "confirm --host h1" in serai("host", "network", "take", "eth0").out
    assert serai("host", "network", "confirm").code == 0
    api.add("host", "h2", {})
    ran = serai("host", "network", "take", "eth0")
    assert ran.code == 1
    assert "h1, h2" in ran.err


@pytest.mark.parametrize(
    ("command", "endpoint"),
    [
        ("pool create p1 --host h1 --export none", "pool.create"),
        ("volume create v1 --pool p1 --size 1G", "volume.create"),
        ("image build tiny", "image.create"),
        ("network create n1 --bridge br0 --subnet 10.0.0.0/24 --range 10.0.0.5-10.0.0.9", "network.create"),
    ],
)
def test_other_nouns_create(serai: Serai, api: FakeApi, command: str, endpoint: str) -> None:
    ran = serai(*command.split())
    assert ran.code == 0, ran.err
    assert endpoint in [request[0] for request in api.requests]
    kind = endpoint.partition(".")[0]
    assert len(serai(kind, "list", "-o", "json").json) == 1


def test_events_are_listed_and_watched(serai: Serai, api: FakeApi) -> None:
    for number in range(5):
        api.emit("vm.state", f"vm/v{number}", message="running")
    assert len(serai("event", "list", "--after", "3", "-o", "json").json) == 2
    lines = serai("event", "watch", "--after", "1", "--count", "3", "-o", "json").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [2, 3, 4]


def test_events_are_narrowed_and_their_time_has_a_zone(serai: Serai, api: FakeApi) -> None:
    for number in range(4):
        api.emit("vm.state", f"vm/v{number % 2}", message="running")
    api.emit("job.state", "vm/v1", message="vm.start is done")
    words = ("event", "list", "-o", "name")
    assert serai(*words, "--resource", "vm/v1").out.split() == ["2", "4", "5"]
    assert serai(*words, "--kind", "vm", "--last", "2").out.split() == ["3", "4"]
    assert serai(*words, "--kind", "job.state").out.split() == ["5"]
    line = serai("event", "list", "-o", "wide", "--last", "1").out.splitlines()[-1].split()
    assert datetime.fromisoformat(line[1]).utcoffset() is not None


def test_jobs_are_listed_shown_and_waited_for(serai: Serai, api: FakeApi) -> None:
    serai("vm", "create", "web1")
    job = next(iter(api.jobs))
    assert "vm.create" in serai("job", "list").out
    assert "finish" in serai("job", "show", job).out
    assert serai("job", "wait", job).out == "vm.create vm/web1 done\n"


def test_contexts_are_kept_and_chosen(serai: Serai, api: FakeApi) -> None:
    assert serai("context", "set", "far", "--url", "http://127.0.0.1:9", "--no-use").code == 0
    rows = [line.split() for line in serai("context", "list").out.splitlines()]
    assert rows[0] == ["NAME", "WHERE"]
    assert [row[:2] for row in rows[1:]] == [["*", "test"], ["far", "http://127.0.0.1:9"]]
    assert serai("context", "set", "bad").code == 1
    assert serai("vm", "list").code == 0
    assert serai("--context", "far", "vm", "list").code == 1
    assert serai("--context", "nope", "vm", "list").code == 1
    serai("context", "use", "far")
    assert serai("context", "show").out == "far  http://127.0.0.1:9\n"


def test_ssh_goes_the_contexts_way_and_remembers_keys_by_id(api: FakeApi, tmp_path: Path) -> None:
    vm = Vm.model_validate(api.add("vm", "web1", {"vnics": [{"network": "lan", "ip": "10.77.0.100"}]}))
    argv = ssh_argv(vm, "debian", ["uname", "-a"], Context(socket=tmp_path, via={"netns": "serai-lab-probe"}), tmp_path)
    assert argv[:3] == ["nsenter", "--net=/run/netns/serai-lab-probe", "ssh"]
    assert f"HostKeyAlias=serai-{vm.id}" in argv
    assert f"UserKnownHostsFile={tmp_path}/known_hosts" in argv
    assert argv[-4:] == ["debian@10.77.0.100", "--", "uname", "-a"]
    assert ssh_argv(vm, "", [], Context(socket=tmp_path), tmp_path)[0] == "ssh"
    with pytest.raises(UnavailableError, match="no known address"):
        ssh_argv(Vm.model_validate(api.add("vm", "web2", {})), "", [], Context(socket=tmp_path), tmp_path)


def test_ssh_says_who_it_is_and_refuses_a_vm_that_is_down(serai: Serai, api: FakeApi, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    api.add("image", "deb", {"source": "build", "recipe": "debian"})
    vm = api.add(
        "vm", "web1", {"image": "deb", "vnics": [{"network": "lan", "ip": "10.77.0.100"}]}, {"state": "stopped"}
    )
    ran = serai("vm", "ssh", "web1")
    assert (ran.code, "VM web1 is stopped" in ran.err, "serai vm start web1" in ran.err) == (1, True, True)
    vm["status"]["state"] = "paused"
    assert "serai vm resume web1" in serai("vm", "ssh", "web1").err
    vm["status"]["state"] = "running"
    command = [sys.executable, "-m", "serai.app.cli.main", "vm", "ssh"]
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    for target, destination in (("web1", "debian@10.77.0.100"), ("root@web1", "root@10.77.0.100")):
        done = subprocess.run([*command, target], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == destination
        assert ("Logging in as debian" in done.stderr) == (target == "web1")


def test_what_is_no_size_or_time_is_wrong_usage(api: FakeApi, serai: Serai) -> None:
    """Exit 2, as for any command line that means nothing; the value and what to write instead are named."""
    api.add("vm", "v", {"image": "tiny"}, {"state": "stopped"})
    api.add("host", "h1", {})
    for argv in (
        ("vm", "create", "v", "--image", "tiny", "--memory", "lots"),
        ("vm", "create", "v", "--image", "tiny", "--memory", "1X"),
        ("vm", "create", "v", "--image", "tiny", "--memory", ""),
        ("vm", "create", "v", "--image", "tiny", "--disk", "shared0:lots"),
        ("vm", "edit", "v", "--memory", "lots"),
        ("volume", "create", "v", "--pool", "shared0", "--size", "lots"),
        ("volume", "resize", "v", "lots"),
        ("host", "edit", "h1", "--memory-reserve", "lots"),
        ("vm", "stop", "v", "--timeout", "soon"),
    ):
        ran = serai(*argv)
        assert ran.code == 2, (argv, ran)
        # A usage error may be broken over lines.
        told = " ".join(ran.err.replace("│", " ").split())
        assert repr(argv[-1].removeprefix("shared0:")) in told
        assert "rite it like" in told or "se K, M, G or T" in told, told
    # A size that is one, but too small, is refused as any other value.
    assert serai("vm", "create", "v", "--image", "tiny", "--memory", "1M").code == 1


@pytest.mark.parametrize("noun", ["pool", "volume", "image", "vm"])
def test_deleting_by_force_asks_for_it(serai: Serai, api: FakeApi, noun: str) -> None:
    for words, query in (((), {}), (("--force",), {"force": "true"})):
        api.add(noun, "x", {})
        assert serai(noun, "delete", "x", *words).code == 0
        assert [asked for name, asked in api.queries if name == f"{noun}.delete"][-1] == query


def test_a_host_is_fenced_by_word_alone(serai: Serai, api: FakeApi) -> None:
    api.add("host", "h9", {})
    assert "host h9 is fenced" in serai("host", "fence", "h9", "--is-off", "--reason", "burnt").out


def test_a_host_that_is_gone_is_deleted(serai: Serai, api: FakeApi) -> None:
    api.add("host", "h9", {})
    assert serai("host", "delete", "h9").out == "host h9 deleted\n"
    assert serai("host", "delete", "h9").code == 1
