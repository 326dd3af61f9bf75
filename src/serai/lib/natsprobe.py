"""Whether a `nats-server` can be started here, for `serai doctor`: by asking the program itself."""

from __future__ import annotations

from serai.lib.process import ProcessError, ProgramMissingError, run
from serai.schema.host import Ability

PROBE_TIMEOUT = 10.0


async def probe() -> list[Ability]:
    """One ability. One machine alone needs no server: its bus is in the process."""
    name, remedy = "nats-server", "Install it: 'apt install nats-server'. Only 'serai up' on one machine does without."
    try:
        done = await run(["nats-server", "--version"], timeout=PROBE_TIMEOUT)
    except ProgramMissingError:
        return [Ability(name=name, found=False, detail="it is not installed", remedy=remedy)]
    except ProcessError as error:
        return [Ability(name=name, found=False, detail=error.info.message, remedy=remedy)]
    return [Ability(name=name, found=True, detail=f"{done.text.strip()}: the bus of several machines, and of the lab")]
