"""`vm ssh` in a lab: the program really runs in the namespace that the context names."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_api import FakeApi

from serai.client import context as contexts
from serai.client.context import Context

SHOW = '#!/bin/sh\nreadlink /proc/self/ns/net\nfor word in "$@"; do echo "$word"; done\nexit 7\n'


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"serai-t{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=20)


def test_ssh_is_started_in_the_contexts_namespace(tmp_path: Path, namespace: str) -> None:
    stand_in = tmp_path / "bin" / "ssh"
    stand_in.parent.mkdir()
    stand_in.write_text(SHOW)
    stand_in.chmod(0o755)
    file = tmp_path / "config" / "contexts.yaml"
    with FakeApi(tmp_path / "api.sock") as api:
        vm = api.add("vm", "web1", {"vnics": [{"network": "lan", "ip": "10.77.0.100"}]})
        vm["status"]["state"] = "running"
        contexts.put("lab", Context(socket=api.socket, via={"netns": namespace}), file=file)
        ran = subprocess.run(
            [sys.executable, "-m", "serai.app.cli.main", "vm", "ssh", "debian@web1", "--", "uname", "-a"],
            env={**os.environ, "SERAI_CONFIG": str(file), "PATH": f"{stand_in.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 7, ran.stderr
    inside, *words = ran.stdout.splitlines()
    assert inside == f"net:[{Path(f'/run/netns/{namespace}').stat().st_ino}]"
    assert f"HostKeyAlias=serai-{vm['id']}" in words
    assert words[-4:] == ["debian@10.77.0.100", "--", "uname", "-a"]
