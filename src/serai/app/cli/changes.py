"""What applying a document would change: pure functions from a document and the current resource to calls.

A document covers only the fields that it names. Fields that the controller filled in (a VNIC's MAC, a disk's volume) do
not count as differences; lists are compared item by item; labels are compared as a whole.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from serai.app.cli.documents import Document
from serai.lib import yamltext
from serai.lib.imageurl import masked_url
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.image import ImageCreate, ImageSource
from serai.schema.units import exact_size, format_size
from serai.schema.vm import VmEdit
from serai.schema.volume import VolumeEdit

EDITS: dict[str, type[BaseModel]] = {"vm": VmEdit, "volume": VolumeEdit}
TOP = ("labels", "description")
SIZES = ("memory", "size")
HINTS = {
    ("vm", "host"): "Move it: serai vm migrate. Or leave the field out.",
}


@dataclass(frozen=True)
class Call:
    """One call of the REST table."""

    endpoint: str
    body: BaseModel | None = None


@dataclass(frozen=True)
class Change:
    """What becomes of one document: no calls: the resource already matches."""

    document: Document
    calls: list[Call]
    fields: list[str] = field(default_factory=list)
    before: dict[str, Any] | None = None

    @property
    def creates(self) -> bool:
        """Whether the resource is not there yet."""
        return self.before is None


def plan(document: Document, current: dict[str, Any] | None) -> Change:
    """The calls that bring `current` (the resource as it travels, or none) to what the document says.

    Raises ConflictError for a field that cannot change once the resource exists, InvalidError for what needs a file,
    for a volume that would shrink, and for a new resource of which the document says too little.
    """
    if current is None:
        if document.refusal is not None:
            raise document.refusal
        _refuse_upload(document)
        return Change(document, [Call(f"{document.kind}.create", document.body)])
    document = document.whole(current["spec"])
    wanted = document.wanted()
    spec, have = wanted.get("spec", {}), current["spec"]
    if document.kind == "image" and spec.get("url") is not None:
        # The API does not show a URL's credentials: those in the document are not compared.
        spec = {**spec, "url": masked_url(spec["url"])}
    changed = {name: value for name, value in spec.items() if not matches(value, have.get(name))}
    top = {name: wanted[name] for name in TOP if name in wanted and wanted[name] != current[name]}
    _refuse_shrinking(document, changed, have)
    _refuse_other_disks(document, changed, have)
    calls: list[Call] = []
    running = changed.pop("running", None) if document.kind == "vm" else None
    fields = [*changed, *top, *([] if running is None else ["running"])]
    if changed or top:
        calls.append(_edit(document, {**_merged(changed, have), **top}))
    if running is not None:
        calls.append(Call("vm.start" if running else "vm.stop"))
    return Change(document, calls, fields, current)


def _refuse_upload(document: Document) -> None:
    """The content of an upload is in no document: its job would wait for it for ever."""
    if isinstance(document.body, ImageCreate) and document.body.spec.source is ImageSource.UPLOAD:
        raise InvalidError(
            f"{document.where(('spec', 'source'))}: the content of image/{document.name} is not in the document",
            field="spec.source",
            value=ImageSource.UPLOAD,
            remedy=f"Import it first: serai image import FILE --sha256 HEX --name {document.name}.",
        )


def _refuse_shrinking(document: Document, changed: dict[str, Any], have: dict[str, Any]) -> None:
    if document.kind == "volume" and "size" in changed and changed["size"] < have["size"]:
        raise InvalidError(
            f"{document.where(('spec', 'size'))}: volume {document.name} has {format_size(have['size'])}, "
            "and volumes only grow",
            field="spec.size",
            value=format_size(changed["size"]),
            remedy="Make a smaller volume and copy what is needed.",
        )


def _refuse_other_disks(document: Document, changed: dict[str, Any], have: dict[str, Any]) -> None:
    """A disk that is said to be of another size is meant to grow; as it stands a new one would take its place."""
    if document.kind != "vm":
        return
    for index, (disk, now) in enumerate(zip(changed.get("disks") or [], have["disks"], strict=False)):
        size = disk.get("size")
        if disk.get("volume") is None and size is not None and size != now["size"]:
            raise ConflictError(
                f"{document.where(('spec', 'disks', index, 'size'))}: disk {index} of vm/{document.name} is volume "
                f"{now['volume']} of {format_size(now['size'])}, and an edit does not change a disk's size",
                field=f"spec.disks[{index}].size",
                value=format_size(size),
                remedy=f"Grow it: serai volume resize {now['volume']} {format_size(size)}. To have another disk in its "
                f"place, remove it first: serai vm edit {document.name} --remove-disk {now['volume']}.",
            )


def _edit(document: Document, body: dict[str, Any]) -> Call:
    model = EDITS.get(document.kind)
    for name, value in body.items():
        if model is None or name not in model.model_fields:
            place = (name,) if name in TOP else ("spec", name)
            raise ConflictError(
                f"{document.where(place)}: this cannot change once {document.kind}/{document.name} exists",
                field=".".join(place),
                value=value if isinstance(value, str | int) else None,
                remedy=HINTS.get((document.kind, name), "Leave it as it is, or delete the resource and apply again."),
            )
    if model is None:
        raise ConflictError(f"{document.where()}: a {document.kind} cannot be changed")
    return Call(f"{document.kind}.edit", model.model_validate(body))


def matches(wanted: Any, have: Any) -> bool:
    """Whether the current value matches the document."""
    if isinstance(wanted, dict):
        return isinstance(have, dict) and all(matches(value, have.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(have, list) and len(wanted) == len(have) and all(map(matches, wanted, have))
    return bool(wanted == have)


def _merged(changed: dict[str, Any], have: dict[str, Any]) -> dict[str, Any]:
    """Lists go as a whole: matching items keep what the controller filled in."""
    return {
        name: _items(value, have.get(name) or []) if isinstance(value, list) else value
        for name, value in changed.items()
    }


def _items(wanted: list[Any], have: list[Any]) -> list[Any]:
    return [
        _known(have[index]) if index < len(have) and matches(item, have[index]) else item
        for index, item in enumerate(wanted)
    ]


def _known(item: Any) -> Any:
    return {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else item


def difference(change: Change) -> str:
    """A unified diff for people, in YAML, of the fields that the document names; empty if there is none."""
    document, wanted = change.document, change.document.wanted()
    if not change.calls:
        return ""
    before = [] if change.before is None else _lines(_shadow(wanted, change.before))
    wanted = _said(wanted)
    title = f"{document.kind}/{document.name}"
    lines = difflib.unified_diff(
        before, _lines(wanted), f"{title} (now)", f"{title} ({document.where()})", lineterm="", n=3
    )
    return "\n".join(lines)


def _shadow(wanted: Any, have: Any) -> Any:
    """The current resource, reduced to the fields that the document names."""
    if isinstance(wanted, dict) and isinstance(have, dict) and wanted:
        return {key: _shadow(value, have[key]) for key, value in wanted.items() if have.get(key) is not None}
    if isinstance(wanted, list) and isinstance(have, list):
        return [_shadow(wanted[index], item) if index < len(wanted) else item for index, item in enumerate(have)]
    return _said(have)


def _said(value: Any) -> Any:
    """Without fields that are null: they say as much as fields that are left out."""
    if isinstance(value, dict):
        return {key: _said(inner) for key, inner in value.items() if inner is not None}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def _lines(value: Any) -> list[str]:
    return yamltext.dump(_readable(value)).splitlines()


def _readable(value: Any, name: str = "") -> Any:
    """Sizes as people write them, where that loses nothing; URLs without credentials, as the API shows them."""
    if isinstance(value, dict):
        return {key: _readable(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner) for inner in value]
    if name == "url" and isinstance(value, str):
        return masked_url(value)
    return exact_size(value) if name in SIZES and isinstance(value, int) else value
