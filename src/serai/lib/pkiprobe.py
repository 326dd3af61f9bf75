"""Until when the certificates on this machine are valid, for `serai doctor`."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from serai.lib.clock import Clock, SystemClock
from serai.lib.paths import HostPaths
from serai.lib.pki import CA_WARNING, WARNING, TlsFiles, ca_expires, qemu_folder
from serai.schema.host import Ability

RENEWAL = "They are renewed by themselves, by the controller: see that it and the host's agent run, and their logs."
NEW_CA = "Plan a new installation of certificates: with the authority's own, every other one ends."


async def probe() -> list[Ability]:
    """One ability for each certificate of an installation in the usual place."""
    return look(HostPaths().state, SystemClock())


def look(state: Path, clock: Clock) -> list[Ability]:
    """What there is below a state folder."""
    folders = [state / "pki", qemu_folder(state / "pki"), state / "controller/pki"]
    found: list[Ability] = []
    try:
        for tls in map(TlsFiles.in_folder, folders):
            if tls.cert.exists():
                found.append(_ability(tls.identity, tls.expires, WARNING, RENEWAL, clock))
        authority = state / "controller/ca"
        if (authority / "ca.pem").exists():
            found.append(_ability("authority", ca_expires(authority), CA_WARNING, NEW_CA, clock))
    except PermissionError as error:
        found.append(
            Ability(name="certificates", found=False, detail=f"{error.filename} cannot be read", remedy="Be root.")
        )
    return found or [Ability(name="certificates", found=True, detail="there are none on this machine yet")]


def _ability(identity: str, end: datetime, warning: timedelta, remedy: str, clock: Clock) -> Ability:
    fresh = clock.now() < end - warning
    when = f"its certificate ends on {end.date()}" if fresh else f"its certificate ends soon, on {end.date()}"
    return Ability(name=identity, found=fresh, detail=when, remedy="" if fresh else remedy)
