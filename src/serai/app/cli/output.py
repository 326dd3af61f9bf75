"""Results on standard output, in the form that `-o` asked for; everything else goes to standard error.

On a terminal tables are coloured and fit its width; elsewhere they are plain and never cut. What others named or wrote
is shown, never obeyed: control characters come out as their escapes (schema/text.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from serai.app.cli.options import Output
from serai.schema.text import json_safe, unsafe, visible

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

UNLIMITED = 10_000
FOLDED = 120
"""Columns of what has sentences in its cells, where there is no terminal to ask; `-o wide` has a line for each row."""
COLOURS = {
    "running": "green", "online": "green", "ready": "green", "done": "green", "ok": "green",
    "migrating": "cyan", "starting": "cyan", "stopping": "cyan", "creating": "cyan", "queued": "cyan",
    "paused": "yellow", "cancelling": "yellow", "undoing": "yellow", "cancelled": "yellow", "unknown": "yellow",
    "missing": "yellow", "crashed": "red", "failed": "red", "offline": "red", "MISSING": "red",
}  # fmt: skip


def say(text: str, *, colour: str | None = None) -> None:
    """A line of result, or several."""
    text = visible(text, keep="\n")
    sys.stdout.write((typer.style(text, fg=colour) if colour else text) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people, on standard error."""
    sys.stderr.write(visible(text, keep="\n") + "\n")
    sys.stderr.flush()


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON that people can read in any script, and that no terminal acts on."""
    return json_safe(json.dumps(value, indent=indent, ensure_ascii=False))


def plain(item: BaseModel) -> Any:
    """The resource as it travels."""
    return item.model_dump(mode="json")


def name_of(item: Any) -> str:
    """What scripts call it by."""
    for attribute in ("name", "id", "seq"):
        value = getattr(item, attribute, None)
        if value is not None:
            return str(value)
    return ""


def say_data(value: Any, output: Output) -> None:
    """Print plain values as JSON or YAML; in YAML each item of a list is a document."""
    say(to_json(value) if output is Output.JSON else _yaml(value if isinstance(value, list) else [value]))


def show_list(kind: str, items: Sequence[BaseModel], output: Output) -> None:
    """Print a list of one kind."""
    if output in (Output.JSON, Output.YAML):
        say_data([plain(item) for item in items], output)
    elif output is Output.NAME:
        for item in items:
            say(name_of(item))
    else:
        _table(kind, items, wide=output is Output.WIDE)


def show(kind: str, item: BaseModel, output: Output) -> None:
    """Print one resource."""
    if output in (Output.JSON, Output.YAML):
        say_data(plain(item), output)
    elif output is Output.NAME:
        say(name_of(item))
    else:
        _details(kind, item)


def _yaml(documents: list[Any]) -> str:
    from serai.lib import yamltext

    text = yamltext.dump(*documents)
    # Turns of direction are text to YAML's library.
    return yamltext.dump(*documents, allow_unicode=False) if any(map(unsafe, text.replace("\n", ""))) else text


def grid(*titles: str) -> Table:
    """A table without lines; long cells are folded."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _table(kind: str, items: Sequence[BaseModel], *, wide: bool) -> None:
    from rich.text import Text

    from serai.app.cli.views import COLUMNS

    columns = [column for column in COLUMNS[kind] if not (column.narrow if wide else column.wide)]
    table = grid(*(column.title for column in columns))
    for item in items:
        cells = [visible(column.text(item)) for column in columns]
        table.add_row(*(Text(cell, style=COLOURS.get(cell.split(" ")[0], "")) for cell in cells))
    draw(table, FOLDED if kind == "ability" and not wide else UNLIMITED)


def _details(kind: str, item: BaseModel) -> None:
    from rich.table import Table
    from rich.text import Text

    from serai.app.cli.details import rows

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title, text in rows(kind, item):
        table.add_row(Text(visible(title)), Text(visible(text), style=COLOURS.get(text.split(" ")[0], "")))
    draw(table)


def draw(renderable: Any, width: int = UNLIMITED) -> None:
    """Print something of Rich's; plain and as wide as it needs, up to `width`, where there is no terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(renderable)
        return
    console = Console(file=sys.stdout, width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        say(line.rstrip())
