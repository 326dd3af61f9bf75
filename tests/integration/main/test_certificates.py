"""Certificates that are old enough are renewed by the lab's own programs, while a VM runs on."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from tests.support.lab import Lab
from tests.support.looking import PATIENCE

from serai.lab.state import LabFolder
from serai.lib.clock import ManualClock
from serai.lib.pki import CertificateAuthority, TlsFiles, qemu_folder
from serai.schema.job import Event

HOST = "h2"
AGE = timedelta(days=600)
"""More than two thirds of a certificate's life."""


async def until_renewed(lab: Lab, *files: TlsFiles) -> None:
    """Wait until these certificates are new."""
    deadline = time.monotonic() + PATIENCE
    while any(tls.expires < datetime.now(UTC) + AGE for tls in files):
        assert time.monotonic() < deadline, [str(tls.cert) for tls in files]
        await asyncio.sleep(0.1)


async def until_shown(lab: Lab, wanted: dict[str, datetime]) -> None:
    """Wait until the host has told the controller when its certificates end: it does with its next report."""
    deadline = time.monotonic() + PATIENCE
    while (shown := (await lab.client.call("host.show", HOST)).status.facts.certificates) != wanted:
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.1)


async def renewals(lab: Lab) -> list[str]:
    found: list[Event] = [event async for event in lab.client.items("event.list", {"kind": "certificate"})]
    return [f"{event.kind} {event.resource}" for event in found]


async def until_told(lab: Lab, event: str) -> None:
    """Wait for an event; the certificate's file is there before it."""
    deadline = time.monotonic() + PATIENCE
    while event not in (told := await renewals(lab)):
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.1)


async def test_old_certificates_are_renewed_and_nothing_stops(lab: Lab) -> None:
    vm = await lab.create(host=HOST)
    (pid,) = lab.qemus(vm)[HOST]
    folder = LabFolder.of(lab.name)
    long_ago = CertificateAuthority.load(folder.controller / "ca", clock=ManualClock(datetime.now(UTC) - AGE))
    pki = folder.host(HOST) / "state/pki"
    agent, qemu = TlsFiles.in_folder(pki), TlsFiles.in_folder(qemu_folder(pki))
    controller = TlsFiles.in_folder(folder.controller / "pki")
    bus = lab.record("nats-server ctl")

    async with lab.watch(vm):
        for tls in (agent, qemu):
            tls.cert.unlink()
        long_ago.issue_host(HOST, pki)
        pki.chmod(0o711)
        await lab.kill(f"agent {HOST}")
        await lab.restart(f"agent {HOST}")
        await until_renewed(lab, agent, qemu)
        # The controller has said so before the host has its certificate.
        assert (await renewals(lab)).count(f"certificate.renewed host/{HOST}") == 2

        long_ago.renew(controller)
        await lab.kill("controller ctl")
        await lab.restart("controller ctl")
        await until_renewed(lab, controller)
        await lab.online("h1", "h2", "h3")
        await until_told(lab, "certificate.renewed certificate/controller")
        assert lab.record("nats-server ctl") == bus
        assert bus.alive
        await until_shown(lab, {"host.h2": agent.expires, "qemu.h2": qemu.expires})

        # Both ends of a move show theirs, and a stream as well: the image comes from h1.
        await lab.done(await lab.migrate(vm.name, "h3"))
        await lab.done(await lab.migrate(vm.name, HOST))
    assert [len(pids) for host, pids in lab.qemus(vm).items() if host == HOST] == [1]
    assert lab.qemus(vm)[HOST] != [pid]
    assert await lab.guest(vm).uptime() > 0
