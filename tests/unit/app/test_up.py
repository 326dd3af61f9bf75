"""What `serai up` makes of the machine it runs on."""

from __future__ import annotations

import pytest

from serai.app import up


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("rack1.example", "rack1"),
        ("Rack_1", "rack-1"),
        ("x" * 62 + "-y", "x" * 62),
        ("_", "host"),
        ("3f2a9c01b7de", "host-3f2a9c01b7de"),
    ],
)
def test_a_machines_name_becomes_a_hosts(monkeypatch: pytest.MonkeyPatch, machine: str, name: str) -> None:
    """A container's name is often twelve hexadecimal digits, and would be taken for an id."""
    monkeypatch.setattr("socket.gethostname", lambda: machine)
    assert up.own_name() == name
    assert up.UpConfig(name=up.own_name()).name == name  # type: ignore[arg-type]  # a plain text, as the CLI has it
