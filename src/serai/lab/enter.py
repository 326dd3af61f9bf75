"""Programs inside a node of a lab: its network namespace, and for a host its mount namespace with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from serai.lab.state import LabFolder, LabState
from serai.lib import namespace
from serai.lib.process import become
from serai.schema.errors import NotFoundError


def prefix(folder: LabFolder, state: LabState, node: str) -> list[str]:
    """What to put before a program's argv so that it runs in the node. Raises NotFoundError."""
    plan = state.plan
    if node not in plan.nodes:
        raise NotFoundError(
            "the lab has no such node", field="node", value=node, remedy=f"Choose one of {', '.join(plan.nodes)}."
        )
    return namespace.enter_argv(plan.netns(node), folder.pin(node) if node in plan.hosts else None)


def python(module: str) -> list[str]:
    """The argv that runs one of our modules with this very interpreter."""
    return [sys.executable, "-m", module]


def environment(folder: LabFolder) -> dict[str, str]:
    """The environment for our own programs in the lab."""
    return {
        **folder.environment,
        # The package may only be on our own path, not installed.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PATH": os.pathsep.join((str(folder.programs), os.environ.get("PATH", os.defpath))),
    }


def enter(name: str, node: str, argv: Sequence[str]) -> NoReturn:
    """Become the program `argv` in the node of the lab; its exit code and its input and output are ours.

    Raises NotFoundError, and ProgramMissingError if nsenter is missing; a program that is missing there ends with 127.
    """
    folder = LabFolder.of(name)
    line = [*prefix(folder, folder.load(), node), *argv]
    become(line, package="util-linux")
