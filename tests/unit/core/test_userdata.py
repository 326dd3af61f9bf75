"""What cloud-init or sshd would pass over is refused, with the line, and without the text."""

from __future__ import annotations

import pytest

from serai.core.userdata import check, check_ssh_keys
from serai.schema.errors import InvalidError

GOOD = (
    "",
    "#cloud-config\n",
    "#cloud-config\npackages: [vim]\n",
    "\n#cloud-config  \na: 1\n",
    "#!/bin/sh\ntrue: [\n",
    "#include\nhttps://example.org/x\n",
    "## template: jinja\n#cloud-config\na: {{ v1.name }}\n",
    "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n",
    "#cloud-config-archive\n- type: text/x\n",
)


@pytest.mark.parametrize("text", GOOD)
def test_what_cloud_init_knows(text: str) -> None:
    check(text, "f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("foo: [unclosed", "line 1"),
        ("# cloud-config\na: 1\n", "line 1"),
        ("#cloud-config\na: 1\nb: [hunter2\n", "line 4"),
        ("#cloud-config\n- a\n", "its first item"),
        ("#cloud-config\njust words\n", "its first item"),
        ("#cloud-config\na: \x01\n", None),
    ],
)
def test_what_it_would_pass_over(text: str, value: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        check(text, "spec.cloud_init.user_data")
    info = caught.value.info
    assert (info.field, info.remedy is not None) == ("spec.cloud_init.user_data", True)
    assert info.value == value
    assert "hunter2" not in str(caught.value)


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
