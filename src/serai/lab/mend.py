"""Starts again what of a lab's programs is gone: after `kill -9` of an agent, the controller or the nats-server.

Each comes back with the configuration that it had, on the state that it left: that is what shows adoption, and jobs
that are taken up again.
"""

from __future__ import annotations

import time

from serai.client.context import Context
from serai.client.http import Client
from serai.lab import services
from serai.lab.state import LabFolder
from serai.lib.pki import TlsFiles

BUS = "nats-server ctl"


async def mend(name: str) -> list[str]:
    """Start each program that is gone, and wait until all hosts are online; return their roles (`agent h1`).

    Raises NotFoundError if there is no such lab, HostError if a program ends again or the hosts do not come online.
    """
    folder = LabFolder.of(name)
    now = folder.load()
    programs = services.Programs(folder, now)
    gone = [record.role for record in now.processes if not record.alive]
    # The bus first: the others are clients of it, and would only wait.
    for role in sorted(gone, key=lambda role: role != BUS):
        if role == BUS:
            await services.start_bus(folder, now.plan, TlsFiles.in_folder(folder.controller / "pki"), programs)
        else:
            await programs.restart(role)
    if gone:
        deadline = time.monotonic() + services.READY_TIMEOUT
        await services.until_answers(folder, programs, deadline)
        context = Context(socket=folder.api_socket, token_file=folder.token)
        async with Client(context) as client:
            await services.until_online(client, now.plan, programs, deadline)
    return gone
