"""What a lab leaves in files, so that any later command finds all of it.

Each lab has a folder (`/var/lib/serai-lab/<name>`, root's alone; `$SERAI_LAB_DIR` names another parent), made before
anything else of the lab and removed after everything else. Its `lab.json` holds how far the lab is and its processes;
whoever changes the lab holds the folder's lock, which the kernel drops with its holder. So a lab whose phase is
`starting` or `ending` while nobody holds the lock was interrupted, and may be cleaned up.

The machine's register of labs, `/run/serai-lab`, has a link for each lab and the list of folders that labs made on the
machine as places to mount over. The last lab takes them, and the register, away.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from serai.lab import topology
from serai.lib import atomicfile, mount, namespace
from serai.lib.process import start_time
from serai.schema.errors import ConflictError, HostError, NotFoundError
from serai.schema.resource import Frozen

ENV_PARENT = "SERAI_LAB_DIR"
ENV_MARK = "SERAI_LAB_FOLDER"
"""In the environment of the lab's programs and of all that they start: names the lab's folder."""
DEFAULT_PARENT = Path("/var/lib/serai-lab")
REGISTER = Path("/run/serai-lab")
OWN_PATHS = {"state": Path("/var/lib/serai"), "run": Path("/run/serai"), "tgtd": Path("/run/tgtd")}
"""What every host has of its own: its folder in the lab, and where the host sees it."""


class Phase(StrEnum):
    """How far a lab is."""

    STARTING = "starting"
    UP = "up"
    ENDING = "ending"


class ProcessRecord(Frozen):
    """A process that the lab started. `start` (clock ticks since boot) tells it from a later one of that number."""

    role: str
    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return start_time(self.pid) == self.start


class LabState(Frozen):
    """The content of `lab.json`. `link_rate` in bit/s. `contexts`: the file in which the lab's context was put."""

    name: str
    hosts: int
    link_rate: int | None = None
    bare: bool = False
    phase: Phase = Phase.STARTING
    processes: list[ProcessRecord] = Field(default_factory=list)
    contexts: Path | None = None
    contexts_made: bool = False
    previous_context: str | None = None

    @property
    def plan(self) -> topology.Plan:
        return topology.plan(self.name, self.hosts, self.link_rate)


def parent_folder() -> Path:
    """The folder of all labs of this environment."""
    return Path(os.environ.get(ENV_PARENT) or DEFAULT_PARENT).absolute()


@dataclass(frozen=True, slots=True)
class LabFolder:
    """The places in a lab's folder."""

    path: Path

    @classmethod
    def of(cls, name: str) -> LabFolder:
        """The folder of the lab of that name, which need not exist. Raises InvalidError."""
        topology.check_name(name)
        return cls(parent_folder() / name)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def pins(self) -> Path:
        """Folder of the pinned mount namespaces, itself a private mount."""
        return self.path / "ns"

    @property
    def controller(self) -> Path:
        return self.path / "ctl"

    @property
    def api_socket(self) -> Path:
        return self.controller / "api.sock"

    @property
    def token(self) -> Path:
        return self.controller / "token"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @property
    def probes(self) -> Path:
        """Folder of probes under way."""
        return self.path / "probe"

    @property
    def outside(self) -> Path:
        """The machine's own network namespace, pinned where the hosts see it."""
        return self.pins / "outside"

    @property
    def programs(self) -> Path:
        """Folder of programs that agents find before the machine's; see `services`."""
        return self.path / "bin"

    @property
    def environment(self) -> dict[str, str]:
        """Our environment with the mark that makes a program, and what it starts, the lab's."""
        return {**os.environ, ENV_MARK: str(self.path)}

    def pin(self, host: str) -> Path:
        """The pinned mount namespace of a host."""
        return self.pins / host

    def host(self, host: str) -> Path:
        """Folder of what is the host's own."""
        return self.path / "hosts" / host

    def read(self) -> LabState | None:
        """The lab's state; None if there is none. A file that cannot be understood counts as an interrupted lab."""
        try:
            return LabState.model_validate_json((self.path / "lab.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def load(self) -> LabState:
        """The state of a lab that stands. Raises NotFoundError."""
        state = self.read()
        if state is None or state.phase is not Phase.UP:
            raise NotFoundError(
                "there is no such lab" if state is None else f"the lab is {state.phase}",
                field="name",
                value=self.name,
                remedy=f"Start it: serai lab up --name {self.name}.",
            )
        return state

    def write(self, state: LabState) -> None:
        """Record the state, whole or not at all."""
        atomicfile.write_text(self.path / "lab.json", state.model_dump_json(indent=2) + "\n", mode=0o600)


@contextlib.asynccontextmanager
async def locked(folder: LabFolder, timeout: float = 120.0) -> AsyncIterator[None]:
    """Hold a lab's lock, its folder made if need be. Raises ConflictError if another command keeps it for too long."""
    deadline = time.monotonic() + timeout
    while True:
        folder.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the last lab's end may just have taken the parent away
            folder.path.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if _try_lock(descriptor) and _same(descriptor, folder.path):
                yield
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > deadline:
            raise ConflictError(
                "another command is at work on this lab",
                field="name",
                value=folder.name,
                remedy="Wait for it, or interrupt it.",
            )
        await asyncio.sleep(0.05)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, path: Path) -> bool:
    """Whether the folder that was locked is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _registry() -> Iterator[None]:
    # /run itself: a lock file would have to be left behind.
    descriptor = os.open(REGISTER.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def register(folder: LabFolder) -> None:
    """Enter the lab into the machine's register and make the places that its hosts mount over.

    Raises ConflictError if a lab of that name stands in another parent folder.
    """
    with _registry():
        REGISTER.mkdir(mode=0o755, exist_ok=True)
        link = REGISTER / folder.name
        if link.is_symlink() and link.readlink() != folder.path:
            raise ConflictError(
                f"a lab of that name stands already, in {link.readlink().parent}",
                field="name",
                value=folder.name,
                remedy="Choose another name.",
            )
        if not link.is_symlink():
            link.symlink_to(folder.path)
        for place in (*OWN_PATHS.values(), namespace.NETNS):
            if not place.exists():
                with (REGISTER / ".made").open("a") as made:
                    made.write(f"{place}\n")
                place.mkdir(mode=0o755)


def unregister(folder: LabFolder) -> None:
    """Take the lab out of the register; the last one takes the register and the places that labs made with it."""
    with _registry():
        if not REGISTER.is_dir():
            return
        link = REGISTER / folder.name
        if link.is_symlink() and link.readlink() == folder.path:
            link.unlink()
        made = REGISTER / ".made"
        if any(entry != made for entry in REGISTER.iterdir()):
            return
        if made.exists():
            for line in made.read_text().splitlines():
                # Not empty: somebody else uses it by now.
                with contextlib.suppress(OSError, HostError):
                    _remove_place(Path(line))
            made.unlink()
        REGISTER.rmdir()


def _remove_place(place: Path) -> None:
    if place == namespace.NETNS and not any(place.iterdir()):
        # `ip netns` made a mount of it.
        mount.unmount(place, lazy=False)
    place.rmdir()


def standing() -> list[LabFolder]:
    """The folders of all labs in the register, in order of name."""
    if not REGISTER.is_dir():
        return []
    return [LabFolder(entry.readlink()) for entry in sorted(REGISTER.iterdir()) if entry.is_symlink()]
