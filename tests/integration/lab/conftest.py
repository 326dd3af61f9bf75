"""Labs of the tests' own: names that nobody else has, a folder and a context file of their own, gone at the end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from serai.client.context import ENV_FILE
from serai.lab import state
from serai.lab.down import down
from serai.lab.state import OWN_PATHS, LabFolder
from serai.lib import mount, namespace, process
from serai.lib.ids import new_id

OWN_PLACES = frozenset(map(str, OWN_PATHS.values()))
"""Where a host sees its own folders, and no other process does."""


class LabWorld:
    """Names for labs, and what of them is on the machine."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.names: list[str] = []
        self._held: dict[tuple[int, int], int] = {}

    def name(self) -> str:
        """A name for a new lab."""
        self.names.append(f"t{new_id()[:6]}")
        return self.names[-1]

    def remember(self) -> None:
        """Note the namespaces of the labs, to look for their processes when the names are gone."""
        for name in self.names:
            for space in namespace.names(f"serai-{name}-"):
                path = namespace.netns_path(space)
                key = (path.stat().st_dev, path.stat().st_ino)
                if key not in self._held:
                    # Held open, or another lab's namespace may get the number of a deleted one.
                    self._held[key] = os.open(path, os.O_RDONLY)

    def forget(self) -> None:
        """Let go of what `remember` holds."""
        for number in self._held.values():
            os.close(number)
        self._held.clear()

    def left(self) -> dict[str, list[str]]:
        """All that there is of the labs on the machine; each list is empty when nothing is left."""
        folders = [LabFolder.of(name) for name in self.names]
        return {
            "namespaces": [space for name in self.names for space in namespace.names(f"serai-{name}-")],
            "mounts": [str(found.target) for folder in folders for found in mount.mounts(folder.path)],
            "loops": [str(loop) for folder in folders if folder.path.exists() for loop in mount.loops_on(folder.path)],
            "files": [str(path) for path in self.parent.rglob("*")],
            "register": [found.name for found in state.standing() if found.name in self.names],
            "processes": self._processes(),
        }

    def _processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                net = (entry / "ns" / "net").stat()
                line = (entry / "cmdline").read_bytes()
                # A mount namespace cannot be held, as its mounts would stay, and its number goes to the next one.
                # But a process in it still sees the host's own folders.
                mounts = (entry / "mountinfo").read_text()
            except OSError:
                continue
            places = [(fields[3], fields[4]) for fields in map(str.split, mounts.splitlines())]
            inside = any(self.parent.name in root and place in OWN_PLACES for root, place in places)
            inside |= (net.st_dev, net.st_ino) in self._held
            if inside or (str(self.parent).encode() in line and int(entry.name) != os.getpid()):
                found.append(f"{entry.name} {line!r}")
        return found


NOTHING: dict[str, list[str]] = {
    "namespaces": [], "mounts": [], "loops": [], "files": [], "register": [], "processes": []
}  # fmt: skip


def serai(*words: str) -> list[str]:
    """The argv of a command line."""
    return [sys.executable, "-m", "serai.app.cli.main", *words]


async def run(*words: str, check: bool = True, stdin: bytes | None = None) -> process.Completed:
    """Run a command line to its end."""
    return await process.run(serai(*words), check=check, input=stdin, timeout=180)


async def start_inside(name: str, node: str, argv: Sequence[str]) -> process.Child:
    """Start a program in a node, for as long as it likes."""
    return await process.spawn(serai("lab", "exec", "--name", name, node, "--", *argv))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LabWorld]:
    """See LabWorld; whatever a test leaves is taken away, and is its failure."""
    # Short: paths of Unix sockets have 107 bytes. With a space, as a folder of the user's choice may have one.
    parent = Path(tempfile.mkdtemp(prefix="sl-"))
    monkeypatch.setenv(state.ENV_PARENT, str(parent / "a b"))
    monkeypatch.setenv(ENV_FILE, str(parent / "config" / "contexts.yaml"))
    made = LabWorld(parent)
    try:
        yield made
        made.remember()
        for name in made.names:
            await down(name)
        assert made.left() == NOTHING
    finally:
        made.forget()
        shutil.rmtree(parent)
