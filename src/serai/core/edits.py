"""What an edit changed, and how to revert it without reverting later changes by others.

Documents are a resource's fields as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from serai.schema.vm import Vm
from serai.schema.volume import Volume

OWN = ("name", "labels", "description")
"""Fields of a resource beside its spec."""
Changes = Mapping[str, Sequence[Any]]
"""Field to [what it was, what it became]: JSON, so that a job can keep it."""


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The fields that differ."""
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}


def taken_back(now: Mapping[str, Any], made: Changes) -> tuple[dict[str, Any], list[str]]:
    """(Field to what it was before, for the fields that are as the edit made them; the others of `made`: they stay)."""
    back = {name: was for name, (was, became) in made.items() if now[name] == became}
    return back, [name for name, (was, _) in made.items() if name not in back and now[name] != was]


def given(body: BaseModel, *names: str) -> dict[str, Any]:
    """The fields of these that an edit asks for: what is not to change is none."""
    found = {name: getattr(body, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def vm_document(vm: Vm) -> dict[str, Any]:
    """All of a VM that an edit may change. A disk's size is its volume's own, which may grow meanwhile."""
    fields = vm.model_dump(mode="json", include={"spec", *OWN})
    spec = fields.pop("spec")
    for disk in spec["disks"]:
        disk["size"] = None
    return {**spec, **fields}


def volume_document(volume: Volume) -> dict[str, Any]:
    """All of a volume that an edit may change."""
    return {"size": volume.spec.size, "labels": volume.labels, "description": volume.description}
