"""Labs of the tests' own, and what of them is on the machine."""

from __future__ import annotations

import os
from pathlib import Path

from serai.lab import state
from serai.lab.state import OWN_PATHS, LabFolder
from serai.lib import mount, namespace
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
