"""What documents name besides themselves: a VM's image, pools, volumes and networks, a pool's host.

Each must be there already, or be made by one of the documents: this is asked before the first change, since half a site
is worse than none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serai.app.cli.documents import CREATES
from serai.schema.errors import NotFoundError, from_info
from serai.schema.ids import references

if TYPE_CHECKING:
    from serai.app.cli.changes import Change
    from serai.client.http import Client


async def check(client: Client, changes: list[Change]) -> None:
    """Ask for all that the changes need and do not make themselves. Raises NotFoundError with file, line and field."""
    from serai.lib.invalid import path_of

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
