"""`serai doctor`: what this machine can do, and what to install for the rest.

Every driver's folder has a `probe` module, and so have the bus and certificates; each looks for itself, and none is
trusted from a version number alone.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

import typer

from serai.app.cli.options import Output, OutputOption
from serai.app.cli.output import note, say, show_list

if TYPE_CHECKING:
    from serai.schema.host import Ability

PROBES = {
    "hypervisor": "serai.drivers.hypervisor.probe",
    "storage": "serai.drivers.storage.probe",
    "network": "serai.drivers.network.probe",
    "image": "serai.drivers.image.probe",
    "bus": "serai.lib.natsprobe",
    "certificates": "serai.lib.pkiprobe",
}
"""Room to the module with its `async def probe() -> list[Ability]`, in the order of the report."""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def doctor(output: OutputOption = Output.TABLE) -> None:
    """Say what this machine can do, what it lacks, and what to install. Exits 1 only if something required is missing.

    \b
    Examples:
      serai doctor
      serai doctor -o json
    """
    found = asyncio.run(examine())
    abilities = [ability for _, group in found for ability in group]
    if output in (Output.TABLE, Output.WIDE):
        for room, group in found:
            say(f"{room}:")
            show_list("ability", group, output)
            say("")
    else:
        show_list("ability", abilities, output)
    missing = [ability for ability in abilities if ability.required and not ability.found]
    if missing:
        note(f"Required and missing: {', '.join(ability.name for ability in missing)}.")
        raise typer.Exit(1)
    if output in (Output.TABLE, Output.WIDE):
        note("All that is required is here.")


async def examine() -> list[tuple[str, list[Ability]]]:
    """Run all probes, one after another since some start guests; room and what it found."""
    result: list[tuple[str, list[Ability]]] = []
    for room, module in PROBES.items():
        abilities: list[Ability] = await importlib.import_module(module).probe()
        result.append((room, abilities))
    return result
