"""Counts, lengths, figures and characters that no resource can have."""

from __future__ import annotations

from typing import Any

from tests.unit.controller.conftest import World

ODD = ["a\x1b[2J", "a\nb", "a\tb", "\x9b1m", "\u202egnp.exe", "\u2028", "\x00", "\x7f"]


async def refused(world: World, body: dict[str, Any], **spec: Any) -> dict[str, Any]:
    base = {"image": "tiny", "memory": "64M", **spec}
    return await world.refused("POST", "/v1/vms", {"name": "v", "spec": base, **body})


async def test_control_characters_are_refused(world: World) -> None:
    for text in ODD:
        assert (await refused(world, {"description": text}))["field"] == "description"
        assert (await refused(world, {"labels": {"a": text}}))["field"] == "labels.a"
        assert (await refused(world, {"labels": {text: "a"}}))["field"] == "labels"
        assert (await refused(world, {}, cmdline=text))["field"] == "spec.cmdline"
        for path in ("vms/web1", "volumes/web1-disk0"):
            assert (await world.refused("PATCH", f"/v1/{path}", {"description": text}))["field"] == "description"
        pool = {"name": "p", "spec": {"host": "h1"}, "labels": {"a": text}}
        assert (await world.refused("POST", "/v1/pools", pool))["field"] == "labels.a"


async def test_other_scripts_are_text(world: World) -> None:
    words = "Gäste · 日本語 · שלום · 👩\u200d💻"
    body = {"name": "v", "spec": {"image": "tiny", "memory": "64M"}, "description": words, "labels": {"für": "ß"}}
    await world.done("POST", "/v1/vms", body)
    assert (await world.ok("GET", "/v1/vms/v"))["description"] == words


FIGURES: list[tuple[dict[str, Any], str]] = [
    ({"cpus": 0}, "spec.cpus"),
    ({"cpus": -1}, "spec.cpus"),
    ({"cpus": 10**30}, "spec.cpus"),
    ({"memory": 0}, "spec.memory"),
    ({"memory": -(1 << 30)}, "spec.memory"),
    ({"memory": "-1G"}, "spec.memory"),
    ({"memory": "1000000T"}, "spec.memory"),
    ({"memory": 10**30}, "spec.memory"),
    ({"memory": "lots"}, "spec.memory"),
    ({"memory": True}, "spec.memory"),
    ({"memory": []}, "spec.memory"),
    ({"disks": [{"pool": "shared0", "size": 10**30}]}, "spec.disks[0].size"),
    ({"disks": [{"pool": "shared0", "size": 0}]}, "spec.disks[0].size"),
    ({"disks": [{"pool": "shared0", "size": "1M"}] * 16}, "spec.disks"),
    ({"vnics": [{"network": "lan"}] * 16}, "spec.vnics"),
    ({"cloud_init": {"ssh_keys": ["ssh-ed25519 A"] * 65}}, "spec.cloud_init.ssh_keys"),
    ({"cloud_init": {"ssh_keys": ["x" * 20_000]}}, "spec.cloud_init.ssh_keys[0]"),
    ({"cloud_init": {"user_data": "x" * 140_000}}, "spec.cloud_init.user_data"),
    ({"cmdline": "x" * 2049}, "spec.cmdline"),
    ({"autostart_order": 10**20}, "spec.autostart_order"),
    ({"machine_type": "pc-q35-10.0,kernel-irqchip=off"}, "spec.machine_type"),
]


async def test_figures_out_of_all_reason(world: World) -> None:
    for spec, field in FIGURES:
        error = await refused(world, {}, **spec)
        assert (error["status"], error["field"]) == (422, field)
        words = ("at least", "at most", "more than", "Write it", "Correct")
        assert any(word in error["remedy"] for word in words), error


async def test_too_many_or_too_long_labels(world: World) -> None:
    assert (await refused(world, {"labels": {f"k{n}": "" for n in range(65)}}))["field"] == "labels"
    assert (await refused(world, {"labels": {"a": "x" * 256}}))["field"] == "labels.a"
    assert (await refused(world, {"labels": {"x" * 256: "a"}}))["field"] == "labels"
    assert (await refused(world, {"description": "x" * 4097}))["remedy"] == "Give at most 4096 characters."


async def test_the_reason_is_one_line_of_text(world: World) -> None:
    path = "/v1/vms"
    body = {"name": "v", "spec": {"image": "tiny", "memory": "64M"}}
    for value in (b"a\x1b[2J", b"\xff", b"x" * 5000, "\u202e".encode()):
        answer = await world.http.post(path, json=body, headers=[(b"X-Serai-Reason", value)])
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "X-Serai-Reason"), value
    answer = await world.http.post(path, json=body, headers=[(b"X-Serai-Reason", "größer".encode())])
    assert answer.json()["reason"] == "größer"
