"""The small languages of options."""

from pathlib import Path

import pytest
import typer

from serai.app.cli import parse


def test_disks() -> None:
    assert parse.disk("shared0:4G") == {"pool": "shared0", "size": "4G"}
    assert parse.disk("shared0:4G,keep") == {"pool": "shared0", "size": "4G", "keep": True}
    assert parse.disk("volume=data1") == {"volume": "data1"}


@pytest.mark.parametrize("text", ["shared0", ":4G", "shared0:", "shared0:4G,kep", ""])
def test_what_is_no_disk_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse.disk(text)


def test_vnics() -> None:
    assert parse.vnic("lan") == {"network": "lan"}
    assert parse.vnic("lan,ip=10.77.0.100,mac=52:54:00:AA:BB:CC") == {
        "network": "lan",
        "ip": "10.77.0.100",
        "mac": "52:54:00:aa:bb:cc",
    }


@pytest.mark.parametrize("text", ["", "ip=10.0.0.1", "lan,vlan=7", "lan,ip="])
def test_what_is_no_vnic_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse.vnic(text)


def test_labels() -> None:
    assert parse.labels(["a=1", "b="]) == {"a": "1", "b": ""}
    assert parse.labels([]) is None
    with pytest.raises(typer.BadParameter):
        parse.labels(["a"])


def test_ssh_keys_come_as_text_or_from_a_file(tmp_path: Path) -> None:
    assert parse.ssh_key("ssh-ed25519 AAAA me") == ["ssh-ed25519 AAAA me"]
    file = tmp_path / "keys"
    file.write_text("# mine\nssh-ed25519 AAAA me\n\necdsa-sha2-nistp256 BBBB me\n")
    assert parse.ssh_key(str(file)) == ["ssh-ed25519 AAAA me", "ecdsa-sha2-nistp256 BBBB me"]
    file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(typer.BadParameter, match="no public key"):
        parse.ssh_key(str(file))
    with pytest.raises(typer.BadParameter, match="cannot be read"):
        parse.ssh_key(str(tmp_path / "absent"))
