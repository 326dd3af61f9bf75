"""The documents' command lines, run as they are printed, in one shell, from the first to the last.

A block of a document that begins with "```" and has lines that begin with "$ " is a terminal: each such line is a
command, what follows it until an empty line is its output. `[…]` stands for lines of progress. Ids, process ids and
the like differ from run to run: those of a run stand for the printed ones in all later commands.

`python tests/integration/docs/printed.py DOCUMENT …` runs documents and writes what came out into them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from serai.client.context import ENV_FILE
from serai.lab.down import down
from serai.lab.state import DEFAULT_PARENT, ENV_PARENT
from serai.lib import namespace

TOP = Path(__file__).parents[3]
PROGRESS = "[…]"
TIMEOUT = 180.0
REFUSAL = "serai: "
TIMED_OUT = 124
"""What timeout(1) ends with when it has ended its command."""
OUTAGE = re.compile(r"outage of N ms at N s( \(the prober's own delay: N ms\))?")
"""The shape of a probe's remark that each run has another number of, or none. One that did not end is not of it."""
REPORTED = re.compile(r"N N-N-N N:N:N vm\.status \S+ -")
"""The shape of an event that a host's regular report brings, whenever that is."""
END = "--- end of output:"
FENCE = "```"
LAB = "lab"
STATUS = "serai lab status"


@dataclass
class Printed:
    """One command of a document; `first` and `last` are the lines of its output there, last exclusive."""

    line: int
    command: str
    output: list[str]
    first: int
    last: int


@dataclass
class Outcome:
    """What became of it."""

    printed: Printed
    command: str
    code: int
    output: list[str]


def commands(text: str) -> Iterator[Printed]:
    """All commands of a document, in order."""
    lines = text.splitlines()
    inside, found = False, None
    for number, line in enumerate(lines):
        if line.startswith(FENCE):
            if found is not None:
                yield _trimmed(found, number)
            inside, found = (not inside and line == FENCE), None
        elif inside and line.startswith("$ "):
            if found is not None:
                yield _trimmed(found, number)
            found = Printed(number, line[2:], [], number + 1, number + 1)
        elif found is not None:
            found.output.append(line)


def _trimmed(found: Printed, end: int) -> Printed:
    while found.output and not found.output[-1]:
        found.output.pop()
    found.last = found.first + len(found.output)
    return found


def files(text: str) -> dict[str, str]:
    """Files that a document has its reader make: the block after a line that says: Put this into `NAME`."""
    return dict(re.findall(r"Put this into `([^`]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))


def shape(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"\b[0-9a-f]{12}\b", "ID", line)
    line = re.sub(r"\bit is (cancelling|undoing|cancelled)\b", "it is ending", line)
    line = re.sub(r"\((fifo|nice|normal)\)$", "(SCHEDULING)", line)  # as punctual as the machine lets it be
    line = re.sub(r"\b52(:[0-9a-f]{2}){5}\b", "MAC", line)
    line = re.sub(r"\b\d+(\.\d+)?(ms|s|m|h|d|B|K|M|G|T)?(\d+(s|m|h))*\b", "N", line)
    return re.sub(r"\s+", " ", line).strip()


@dataclass
class Shell:
    """One bash. `known` maps what is printed to what it is in this run."""

    process: asyncio.subprocess.Process
    folder: Path
    known: dict[str, str] = field(default_factory=dict)

    async def run(self, printed: Printed) -> Outcome:
        """Run one command, with this run's ids in it."""
        command = re.sub(r"\w+", lambda word: self.known.get(word[0], word[0]), printed.command)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{command}\nprintf '\\n%s %d\\n' '{END}' $?\n".encode())
        lines: list[str] = []
        async with asyncio.timeout(TIMEOUT):
            while True:
                line = await self.process.stdout.readline()
                if not line:
                    raise EOFError(f"the shell ended in {command!r} after {lines}")
                text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line.decode(errors="replace").rstrip("\n"))
                if text.startswith(END):
                    break
                lines.append(text.replace(str(self.folder), str(DEFAULT_PARENT)).rstrip())
        while lines and not lines[-1]:
            lines.pop()
        self._learn(printed, lines)
        return Outcome(printed, command, int(text.rpartition(" ")[2]), lines)

    def _learn(self, printed: Printed, ours: list[str]) -> None:
        """Ids, and of a lab's status process ids, at the same place of lines of the same shape."""
        wanted = r"\d+" if printed.command == STATUS else r"[0-9a-f]{12}"
        places: dict[str, list[str]] = {}
        for line in ours:
            places.setdefault(shape(line), []).append(line)
        for line in printed.output:
            same = places.get(shape(line))
            if not same:
                continue
            for before, after in zip(line.split(), same.pop(0).split(), strict=True):
                if re.fullmatch(wanted, before):
                    self.known.setdefault(before, after)


async def in_lab(document: Path) -> list[Outcome]:
    """Run a document in a folder of its own, its lab too, and leave nothing behind. Raises if that lab is up."""
    taken = namespace.names(f"serai-{LAB}-")
    if taken:
        raise FileExistsError(f"a lab of the documents' name is up on this machine ({taken}): serai lab down")
    with tempfile.TemporaryDirectory(prefix="serai-doc-", dir="/var/tmp") as folder:
        try:
            return await _run(document, Path(folder))
        finally:
            with mock.patch.dict(os.environ, {ENV_PARENT: f"{folder}/lab"}):
                await down(LAB)


async def _run(document: Path, folder: Path) -> list[Outcome]:
    text = document.read_text(encoding="utf-8")
    for name, content in files(text).items():
        (folder / name).write_text(content, encoding="utf-8")
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "200",
        ENV_PARENT: str(folder / "lab"),
        ENV_FILE: str(folder / "contexts.yaml"),
    }
    process = await asyncio.create_subprocess_exec(
        "bash",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        cwd=folder,
        start_new_session=True,
    )
    shell = Shell(process, folder / "lab")
    try:
        outcomes = [await shell.run(printed) for printed in commands(text)]
        if process.stdin is not None:
            process.stdin.close()
        await asyncio.wait_for(process.wait(), TIMEOUT)
        return outcomes
    finally:
        # Whatever a command began that did not end: its loop would go on for ever.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def expected_code(printed: Printed) -> int:
    """What a command ends with: 1 if a refusal, or a difference that `serai diff` found, is printed below it."""
    if "timeout " in printed.command:
        return TIMED_OUT
    differs = printed.command.startswith("serai diff") and bool(printed.output)
    refused = any(line.startswith(REFUSAL) for line in printed.output)
    return 1 if refused or differs else 0


def differences(outcome: Outcome) -> list[str]:
    """What did not come as printed: the exit code, lines in this order; empty if all did."""
    command = outcome.printed.command
    wanted = [shape(line) for line in outcome.printed.output]
    came = [shape(line) for line in outcome.output]
    code = expected_code(outcome.printed)
    wrong = [] if outcome.code == code else [f"exit code {code}, not {outcome.code}"]
    if "event list" in command:
        # How many events a job makes, and in what order two writers' come, differs; what they say does not.
        kinds = set(wanted)
        wrong += [f"no event like {line}" for line in came if line not in kinds and not REPORTED.fullmatch(line)]
        return wrong if len(came) == len(wanted) else [*wrong, f"{len(wanted)} events, not {len(came)}"]
    if "lab probe" in command or "probe.txt" in command:
        wanted, came = ([line for line in lines if not OUTAGE.fullmatch(line)] for lines in (wanted, came))
    if PROGRESS not in wanted and "vm console" not in command:
        return wrong if wanted == came else [*wrong, f"exactly {wanted}"]
    wrong += [f"no {line}" for line in came if line.startswith(REFUSAL) and line not in wanted]
    rest = iter(came)
    return [*wrong, *(line for line in wanted if line != PROGRESS and line not in rest)]


def rewritten(text: str, outcomes: list[Outcome]) -> str:
    """The document with what came out."""
    lines = text.splitlines()
    for outcome in reversed(outcomes):
        printed, output = outcome.printed, outcome.output
        if PROGRESS in printed.output and not differences(outcome):
            kept = [shape(line) for line in printed.output if line != PROGRESS]
            output = [PROGRESS, *(line for line in output if shape(line) in kept)]
        lines[printed.line : printed.last] = [f"$ {outcome.command}", *output]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite the documents that are named."""
    for name in sys.argv[1:]:
        document = Path(name)
        outcomes = asyncio.run(in_lab(document))
        for outcome in outcomes:
            for line in differences(outcome):
                print(f"{name}:{outcome.printed.line + 1}: {outcome.printed.command}: not as printed: {line}")
        document.write_text(rewritten(document.read_text(encoding="utf-8"), outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
