"""Checks that several nouns share."""

from __future__ import annotations

import pytest

from serai.controller.api.checks import check_ssh_keys
from serai.schema.errors import InvalidError


@pytest.mark.parametrize(
    "key",
    [
        "ssh-ed25519 AAAA",
        "ssh-rsa  AAAA== me@laptop, with words",
        "sk-ssh-ed25519@openssh.com AAAA+/ x",
        'command="echo a b",no-pty ecdsa-sha2-nistp256 AAAA= ü',
    ],
)
def test_keys(key: str) -> None:
    check_ssh_keys([key], "keys")


@pytest.mark.parametrize(
    "key", ["", "ssh-ed25519", "ssh-ed25519 ", "AAAA ssh-rsa", "ssh-rsa AA!A", "ssh-rsa AAAA\n", "ssh-rsa A\x7f", "-rf"]
)
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_ssh_keys(["ssh-rsa AAAA", key], "keys")
    assert caught.value.info.field == "keys[1]"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("repeated", ["ssh-a A ", "ssh-a ", "ssh-a  ", "x"])
def test_the_longest_keys_do_not_hold_the_controller_up(repeated: str) -> None:
    """A pattern with several ways to match took half a second for each of these."""
    for key in [(repeated * (16 << 10))[: (16 << 10) - 1] + "\x01"] * 64:
        with pytest.raises(InvalidError):
            check_ssh_keys([key], "keys")
