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
from serai.lab.state import LabFolder
from serai.lib import mount, namespace, process
from serai.lib.ids import new_id


class LabWorld:
    """Names for labs, and what of them is on the machine."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.names: list[str] = []
        self._inodes: set[tuple[int, int]] = set()

    def name(self) -> str:
        """A name for a new lab."""
        self.names.append(f"t{new_id()[:6]}")
        return self.names[-1]

    def remember(self) -> None:
        """Note the namespaces of the labs, to look for their processes when the names are gone."""
        for name in self.names:
            paths = [namespace.netns_path(space) for space in namespace.names(f"serai-{name}-")]
            folder = LabFolder.of(name)
            pins = [found.target for found in mount.mounts(folder.path) if found.kind == "nsfs"]
            paths += [pin for pin in pins if pin != folder.outside]
            self._inodes |= {(path.stat().st_dev, path.stat().st_ino) for path in paths}

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
                spaces = [(entry / "ns" / kind).stat() for kind in ("net", "mnt")]
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            inside = any((space.st_dev, space.st_ino) in self._inodes for space in spaces)
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
    # Short: paths of Unix sockets have 107 bytes.
    parent = Path(tempfile.mkdtemp(prefix="sl-"))
    monkeypatch.setenv(state.ENV_PARENT, str(parent / "labs"))
    monkeypatch.setenv(ENV_FILE, str(parent / "config" / "contexts.yaml"))
    made = LabWorld(parent)
    try:
        yield made
        made.remember()
        for name in made.names:
            await down(name)
        assert made.left() == NOTHING
    finally:
        shutil.rmtree(parent)
