"""`serai image`: what VMs start from."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from serai.app.cli.action import add_delete, add_list, add_show, create
from serai.app.cli.options import (
    HostOption,
    ImageArgument,
    Output,
    OutputOption,
    WaitOption,
    noun,
)
from serai.app.cli.parse import check_regular

if TYPE_CHECKING:
    from serai.client.http import Client
    from serai.schema.image import ImageCreate
    from serai.schema.job import Job

app = noun(
    "What VMs start from: build or import.",
    "serai image build debian",
    "serai image import disk.qcow2 --sha256 4f1b...",
)

SCHEME = "://"
"""What makes a URL of a source; which schemes there are is for the check to say."""
SUFFIXES = {".qcow2": "qcow2", ".raw": "raw", ".img": None}
"""A format that a file's name tells; `.img` may be either."""


class Recipe(StrEnum):
    """Guests that Serai can build."""

    TINY = "tiny"
    DEBIAN = "debian"


NameOption = Annotated[str | None, typer.Option(help="Its name in Serai; that of the recipe or file unless told.")]


@app.command("build")
def build_(
    ctx: typer.Context,
    recipe: Annotated[Recipe, typer.Argument(help="Which guest.")],
    name: NameOption = None,
    host: HostOption = None,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Build a guest image from Debian's packages; what was built before is taken from the cache.

    \b
    Examples:
      serai image build tiny
      serai image build debian --name debian12
    """
    from serai.app.cli.invalid import build
    from serai.schema.image import ImageCreate

    spec = {"source": "build", "recipe": recipe.value}
    body = build(ImageCreate, {"name": name or recipe.value, "spec": spec, "host": host})
    create(ctx, "image", body, wait=wait, output=output)


@app.command("import")
def import_(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="A qcow2 or raw disk image.")],
    sha256: Annotated[str, typer.Option(metavar="HEX", help="What its SHA-256 must be.")],
    name: NameOption = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="qcow2|raw", help="Seen from the content unless told.")
    ] = None,
    host: HostOption = None,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import a cloud image from a file here or from a URL. A wrong checksum leaves nothing behind.

    \b
    Examples:
      serai image import debian-12-generic-amd64.qcow2 --sha256 4f1b... --name debian12
      serai image import https://images.example/disk.raw --sha256 9e02...
    """
    from serai.app.cli.invalid import build
    from serai.lib.imageurl import check_sha256, check_url
    from serai.schema.image import ImageCreate

    local = SCHEME not in source
    if not local:
        check_url(source, "URL")
    # A name never comes from a URL's query: there may be a token in it.
    path = Path(source if local else urlsplit(source).path)
    stem, suffix = path.stem, path.suffix
    spec = {
        "source": "upload" if local else "url",
        "url": None if local else source,
        "sha256": check_sha256(sha256, "sha256"),
        "format": format_ or SUFFIXES.get(suffix),
    }
    body = build(ImageCreate, {"name": name or _plain_name(stem), "spec": spec, "host": host})
    start = None
    if local:
        file = Path(source).expanduser()
        check_regular(file, source, "FILE")
        start = partial(_send, file=file, body=body, wait=wait)
    create(ctx, "image", body, wait=wait, output=output, done="imported", start=start)


def _plain_name(stem: str) -> str:
    """A name from a file's: lower case, and hyphens for what names cannot hold."""
    text = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem.lower())
    return text.strip("-")[:63].strip("-")


async def _send(client: Client, file: Path, body: ImageCreate, *, wait: bool) -> Job:
    """Start the job that receives the file, and upload it."""
    from serai.app.cli.action import ended_well
    from serai.app.cli.progress import follow
    from serai.app.cli.upload import check, upload
    from serai.schema.errors import SeraiError

    # Before anything is sent: a mistake in the sum is found without moving gigabytes.
    await check(file, body.spec.sha256 or "")
    job: Job = await client.call("image.create", None, body)
    try:
        await upload(client, body.name, file)
    except SeraiError:
        if wait:
            # The job undoes what it had begun: a failed import has left nothing behind when this returns.
            await client.wait_job(job.id)
        raise
    return ended_well(await follow(client, job)) if wait else job


add_list(app, "image", "List images, and the hosts that hold a copy.", "serai image list")
add_show(app, "image", ImageArgument, "Show one image.", "serai image show debian -o yaml")
add_delete(
    app,
    "image",
    ImageArgument,
    "Delete an image; VMs that were cloned from it keep their disks.",
    "serai image delete debian12",
    "serai image delete debian12 --force",
)
