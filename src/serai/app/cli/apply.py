"""`serai apply`: make it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli import parse
from serai.app.cli.options import Output, OutputOption
from serai.app.cli.output import note, say, show_list
from serai.app.cli.session import run
from serai.schema.text import visible

if TYPE_CHECKING:
    from serai.app.cli.changes import Call, Change
    from serai.app.cli.documents import Document
    from serai.client.http import Client

app = typer.Typer(rich_markup_mode=None, add_completion=False)

FilesOption = Annotated[
    list[str], typer.Option("-f", "--file", metavar="FILE", help="YAML documents; '-' is standard input; repeatable.")
]


@app.command()
def apply(ctx: typer.Context, file: FilesOption, output: OutputOption = Output.TABLE) -> None:
    """Create or change what files describe, and leave alone what is as they say.

    All documents are read before the first change, and so is whatever they name: it must be there, or be made by one
    of them. A document names its kind (network, pool, image, volume, vm), its name and the fields of its spec that
    matter to you; -o yaml of any 'show' is such a document.

    \b
    Examples:
      serai apply -f site.yaml
      serai vm show web1 -o yaml | sed 's/cpus: 1/cpus: 2/' | serai apply -f -
    """
    documents = documents_in(file)

    async def make_it_so(client: Client) -> list[Any]:
        changes = await planned(client, documents)
        for change in changes:
            await _carry_out(client, change, quiet=output is not Output.TABLE)
        return [await client.call(f"{document.kind}.show", document.name) for document in documents]

    items = run(ctx, make_it_so)
    if output in (Output.JSON, Output.YAML, Output.NAME):
        show_list("", items, output)


def documents_in(files: list[str]) -> list[Document]:
    """The documents of all files, ready to be carried out in order. Raises InvalidError."""
    from serai.app.cli.documents import in_order
    from serai.app.cli.documents import parse as documents_of

    documents = []
    for name in files:
        documents += documents_of(parse.read(name, "-f", parse.DOCUMENT), "standard input" if name == "-" else name)
    if not documents:
        raise typer.BadParameter("there is no document in it", param_hint="-f")
    return in_order(documents)


async def planned(client: Client, documents: list[Document]) -> list[Change]:
    """What each document would change; changes nothing. Raises ConflictError, InvalidError, NotFoundError."""
    from serai.app.cli.changes import plan
    from serai.schema.errors import NotFoundError

    changes = []
    for document in documents:
        try:
            current = (await client.call(f"{document.kind}.show", document.name)).model_dump(mode="json")
        except NotFoundError:
            current = None
        changes.append(plan(document, current))
    await _check_references(client, changes)
    return changes


async def _check_references(client: Client, changes: list[Change]) -> None:
    """What the changes refer to is there, or made by one of them. Raises NotFoundError with file, line and field.

    Asked before the first change, since half a site is worse than none.
    """
    from serai.app.cli.documents import CREATES
    from serai.lib.invalid import path_of
    from serai.schema.errors import NotFoundError, from_info
    from serai.schema.ids import references

    there = {(change.document.kind, change.document.name) for change in changes}
    for change in changes:
        document = change.document
        for one in references(CREATES[document.kind], [document.wanted()]) if change.calls else ():
            if (one.kind, one.text) in there:
                continue
            try:
                await client.call(f"{one.kind}.show", one.text)
            except NotFoundError as error:
                told = {"message": f"{document.where(one.loc)}: {error.info.message}", "field": path_of(one.loc)}
                raise from_info(error.info.model_copy(update=told)) from None
            there.add((one.kind, one.text))


async def _carry_out(client: Client, change: Change, *, quiet: bool) -> None:
    tell = note if quiet else say
    document = change.document
    for call in change.calls:
        await _send(client, document, call)
    title = f"{document.kind}/{document.name}"
    if change.creates:
        tell(f"{title} created")
    elif change.calls:
        tell(f"{title} changed ({', '.join(change.fields)})")
    else:
        tell(f"{title} unchanged")
    if change.calls and document.kind == "vm":
        after = await client.call("vm.show", document.name)
        for condition in after.status.conditions:
            note(visible(f"{title}: {condition.type}: {condition.message}"))


async def _send(client: Client, document: Document, call: Call) -> None:
    """One call. An error names the file and line of the document that caused it."""
    from serai.app.cli.action import started
    from serai.schema.endpoints import ENDPOINTS
    from serai.schema.errors import SeraiError, from_info

    name = None if call.endpoint.endswith(".create") else document.name
    try:
        if ENDPOINTS[call.endpoint].job:
            await started(client, call.endpoint, name, call.body, wait=True)
        else:
            await client.call(call.endpoint, name, call.body)
    except SeraiError as error:
        info = error.info
        raise from_info(info.model_copy(update={"message": f"{document.place(info.field)}: {info.message}"})) from error
