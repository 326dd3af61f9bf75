"""`vm console` on a real terminal: raw meanwhile, and as it was after Ctrl-]."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable

from tests.support.fake_api import FakeApi

COMMAND = [sys.executable, "-W", "error", "-m", "serai.app.cli.main", "vm", "console", "web1"]
DEADLINE = 20.0


def reader(master: int) -> Callable[[str], str]:
    seen = ""

    def until(text: str) -> str:
        nonlocal seen
        end = time.monotonic() + DEADLINE
        while text not in seen:
            assert time.monotonic() < end, f"never saw {text!r} in {seen!r}"
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 4096).decode()
        return seen

    return until


def test_keys_go_through_as_they_are_until_the_escape(api: FakeApi) -> None:
    api.add("vm", "web1", {})
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with subprocess.Popen(COMMAND, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        until = reader(master)
        assert "Ctrl-]" in until("login: ")
        os.write(master, b"\x03ls")
        until("\x03ls")
        os.write(master, b"more\x1dnever")
        until("Left the console")
        assert process.wait(DEADLINE) == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_output_is_shown_when_there_is_nothing_to_type(api: FakeApi) -> None:
    api.add("vm", "web1", {})
    ran = subprocess.run(COMMAND, input=b"exit\n", capture_output=True, timeout=DEADLINE, check=True)
    assert ran.stdout == b"login: exit\n"
