"""Ctrl-C while a job is followed: asked on a terminal, left running elsewhere. Real processes, real terminals."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.support.fake_api import FakeApi

from serai.schema.errors import HostError
from serai.schema.job import JobState

COMMAND = [sys.executable, "-W", "error", "-m", "serai.app.cli.main", "vm", "migrate", "web1", "--to", "h2"]
DEADLINE = 20.0


@pytest.fixture
def held(api: FakeApi) -> Iterator[FakeApi]:
    """An API whose jobs stay in their second step."""
    api.add("vm", "web1", {}, {"state": "running", "host": "h1"})
    api.hold.clear()
    yield api
    api.hold.set()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self) -> None:
        master, slave = pty.openpty()
        self.master = master
        self.seen = ""
        self.process = subprocess.Popen(COMMAND, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)

    def until(self, text: str) -> None:
        """Read until the text was seen."""
        end = time.monotonic() + DEADLINE
        while text not in self.seen:
            assert time.monotonic() < end, f"never saw {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode()

    def rest(self) -> int:
        """Read to the end; the exit code."""
        try:
            while data := os.read(self.master, 4096):
                self.seen += data.decode()
        except OSError:
            pass  # A terminal whose last user has gone answers EIO.
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(held: FakeApi) -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def only_job(api: FakeApi) -> str:
    return next(iter(api.jobs))


def test_without_a_terminal_the_job_is_left_running(held: FakeApi) -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=-1, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "step work: running" in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(DEADLINE) == 130
    job = only_job(held)
    assert f"serai job wait {job}" in said
    assert f"serai job cancel {job}" in said
    assert held.jobs[job].state is JobState.RUNNING


def test_on_a_terminal_it_asks_and_cancels(held: FakeApi, terminal: Terminal) -> None:
    terminal.until("work")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("leave it running?")
    os.write(terminal.master, b"c\n")
    assert terminal.rest() == 1
    assert "cancelled" in terminal.seen
    assert held.jobs[only_job(held)].state is JobState.CANCELLED


@pytest.mark.parametrize("again", [False, True])
def test_an_empty_answer_or_a_second_time_leaves_it(held: FakeApi, terminal: Terminal, again: bool) -> None:
    terminal.until("work")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("leave it running?")
    if again:
        terminal.process.send_signal(signal.SIGINT)
    else:
        os.write(terminal.master, b"\n")
    assert terminal.rest() == 130
    assert "goes on" in terminal.seen
    assert held.jobs[only_job(held)].state is JobState.RUNNING


def test_steps_are_drawn_to_the_end(held: FakeApi, terminal: Terminal) -> None:
    terminal.until("work")
    held.hold.set()
    assert terminal.rest() == 0
    assert "finish" in terminal.seen
    assert "moved from h1 to h2" in terminal.seen


def test_nothing_is_drawn_over_the_question_and_the_end_withdraws_it(held: FakeApi, terminal: Terminal) -> None:
    terminal.until("work")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("leave it running? [c/L] ")
    held.hold.set()
    assert terminal.rest() == 0
    after = terminal.seen.partition("[c/L] ")[2]
    # The first thing after the question is that it is withdrawn; then the job's end and the summary, once each.
    assert after.startswith("\r\nThe job has ended meanwhile.")
    assert "moved from h1 to h2" in after
    assert held.jobs[only_job(held)].state is JobState.DONE


def test_a_failed_job_is_told_after_the_question_is_withdrawn(held: FakeApi, terminal: Terminal) -> None:
    held.failure = HostError("the link went away")
    terminal.until("work")
    terminal.process.send_signal(signal.SIGINT)
    terminal.until("leave it running? [c/L] ")
    held.hold.set()
    assert terminal.rest() == 1
    assert "the link went away" in terminal.seen.partition("ended meanwhile")[2]
