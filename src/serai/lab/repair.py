"""Starts those programs of a lab again that are gone: after `kill -9` of an agent, the controller or the nats-server.

Each comes back with its old configuration on the state that it left: that shows how VMs are adopted, and how jobs
are resumed.
"""

from __future__ import annotations

import time

from serai.client.context import Context
from serai.client.http import Client
from serai.lab import services
from serai.lab.state import LabFolder
from serai.lib.pki import TlsFiles

BUS = "nats-server ctl"
AGENT = "agent "


async def repair(name: str) -> list[str]:
    """Start each program that is gone, and wait until all hosts are online; return their roles (`agent h1`).

    Raises NotFoundError if there is no such lab, HostError if a program ends again or the hosts do not come online.
    """
    folder = LabFolder.of(name)
    now = folder.load()
    programs = services.Programs(folder, now)
    gone = [record.role for record in now.processes if not record.alive]
    # The bus first, since the others are its clients; the agents last, since only their hello to the controller tells
    # that they are back: hosts are shown online for a while after their agents died.
    agents = [role for role in gone if role.startswith(AGENT)]
    for role in sorted(set(gone) - set(agents), key=lambda role: role != BUS):
        if role == BUS:
            await services.start_bus(folder, now.plan, TlsFiles.in_folder(folder.controller / "pki"), programs)
        else:
            await programs.restart(role)
    if gone:
        deadline = time.monotonic() + services.READY_TIMEOUT
        await services.until_answers(folder, programs, deadline)
        async with Client(Context(socket=folder.api_socket, token_file=folder.token)) as client:
            seen = await services.hellos(client, programs, deadline)
            for role in agents:
                await programs.restart(role)
            before = {host: seen.get(host) for host in (role.removeprefix(AGENT) for role in agents)}
            await services.until_online(client, now.plan, programs, deadline, before)
    return gone
