"""No value of another JSON type is taken for what a field holds: `0` is not false, `"1"` is not 1."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from tests.unit.controller.conftest import World

from serai.schema.endpoints import ENDPOINTS


class Spelt(str):
    """A size: text as people write it, or a whole number."""


DISK = {"pool": "shared0", "size": Spelt("1G"), "volume": "web1-disk0", "keep": True}
VNIC = {"network": "lan", "mac": "52:54:00:00:00:02", "ip": "10.77.0.100"}
SEED = {"ssh_keys": ["ssh-ed25519 AAAA me"], "user_data": "#cloud-config\n"}
WORDS: dict[str, Any] = {"labels": {"tier": "web"}, "description": "text"}
SHARED: dict[str, Any] = {
    "cpus": 2, "memory": Spelt("64M"), "disks": [DISK], "vnics": [VNIC], "cloud_init": SEED, "cmdline": "quiet",
    "restart": "never", "autostart": True, "autostart_order": 3, "template": False,
}  # fmt: skip
VM = {
    **SHARED, "image": "tiny", "machine": "q35", "machine_type": "pc-q35-10.0", "max_cpus": 4, "host": "h1",
    "running": True,
}  # fmt: skip
NETWORK = {
    "bridge": "br-lan", "subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "nameservers": ["10.77.0.1"],
    "range_start": "10.77.0.10", "range_end": "10.77.0.20", "mtu": 1500,
}  # fmt: skip
IMAGE = {"source": "url", "recipe": "tiny", "url": "http://x/y", "sha256": "a" * 64, "format": "qcow2"}
BODIES: dict[str, dict[str, Any]] = {
    "host.edit": {"schedulable": True, "memory_reserve": Spelt("1G"), **WORDS},
    "host.fence": {"is_off": True, "reason": "power supply burnt"},
    "host.take": {"uplink": "eth0", "bridge": "br-lan", "confirm_within": 60.0},
    "pool.create": {"name": "p", "spec": {"host": "h1", "driver": "dir", "path": "/p", "export": "none"}, **WORDS},
    "volume.create": {"name": "v", "spec": {"pool": "shared0", "size": Spelt("1G"), "image": "tiny"}, **WORDS},
    "volume.edit": {"size": Spelt("2G"), **WORDS},
    "image.create": {"name": "i", "spec": IMAGE, "host": "h1", **WORDS},
    "network.create": {"name": "n", "spec": NETWORK, **WORDS},
    "vm.create": {"name": "v", "spec": VM, **WORDS},
    "vm.edit": {"rename": "w", **SHARED, **WORDS},
    "vm.start": {"host": "h1"},
    "vm.stop": {"force": False, "timeout": 60.0},
    "vm.restart": {"force": False, "timeout": 60.0},
    "vm.migrate": {"to": "h2"},
    "vm.clone": {"name": "w"},
}
"""A body of each endpoint with every field that its model has."""

OTHERS: dict[type, tuple[Any, ...]] = {
    bool: (0, 1, "false", "yes"),
    int: (True, "1", 1.5, 1.0),
    float: (True, "60", "1m"),
    str: (1, True, 0.5),
    Spelt: (True, 1.5, []),
    list: ({}, "a"),
    dict: ([], "a", 0),
}
"""What is no value of a field whose right value has this Python type."""


def leaves(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each value in a body, with its place; the body itself comes first."""
    yield place, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*place, key))


def written(place: tuple[str | int, ...]) -> str:
    """`spec.disks[0].size`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".") or "body"


def put(body: Any, place: tuple[str | int, ...], value: Any) -> Any:
    if not place:
        return value
    body = copy.deepcopy(body)
    inner = body
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return body


def test_the_bodies_have_every_field() -> None:
    assert BODIES.keys() == {endpoint.name for endpoint in ENDPOINTS.values() if endpoint.body is not None}
    for name, body in BODIES.items():
        model = ENDPOINTS[name].body
        assert model is not None
        _same(model.model_validate(body), body, name)


def _same(model: BaseModel, body: dict[str, Any], where: str) -> None:
    assert type(model).model_fields.keys() == body.keys(), where
    for field, given in body.items():
        value = getattr(model, field)
        for one, of in zip(value, given, strict=True) if isinstance(value, list) else [(value, given)]:
            if isinstance(one, BaseModel):
                _same(one, of, f"{where} {field}")


@pytest.mark.parametrize("name", BODIES)
async def test_a_value_of_another_type_is_refused_by_name(bare: World, name: str) -> None:
    endpoint, body = ENDPOINTS[name], BODIES[name]
    path = endpoint.path.format(name="web1")
    for place, value in leaves(body):
        for other in OTHERS[type(value)]:
            error = await bare.refused(endpoint.method, path, put(body, place, other))
            assert (error["status"], error["code"], error["field"]) == (422, "invalid", written(place)), (other, error)
            simple = not isinstance(other, dict | list) and place[-1:] not in (("cloud_init",), ("user_data",))
            shown = str(other).lower() if isinstance(other, bool) else str(other)
            assert error["value"] == (shown if simple else None), (place, error)
            assert not error["remedy"].startswith("Correct"), (place, other, error)
