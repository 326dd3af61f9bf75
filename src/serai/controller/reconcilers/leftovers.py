"""Leftovers: what hosts that did not answer have yet to clear away, until they say that it is done.

A leftover is written in the transaction that leaves something behind, and goes with its host when that is deleted. The
leftovers of one host are carried out in the order in which they were left: a pool is closed after its volumes.
"""

from __future__ import annotations

import asyncio
import logging

from serai.controller.commands import CommandSender, SendOptions
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.controller.store.leftovers import Leftover
from serai.lib.ids import new_id
from serai.schema.commands import BY_NAME
from serai.schema.errors import NotFoundError, SeraiError, UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName

log = logging.getLogger(__name__)

PERIOD = 10.0
"""Seconds between two passes, if no host comes back meanwhile."""
PATIENCE = 10.0


class ClearLeftovers:
    """One pass is `act`."""

    def __init__(self, store: Store, hosts: CommandSender, rights: Rights) -> None:
        self._store = store
        self._hosts = hosts
        self._rights = rights

    async def act(self) -> None:
        """Have all hosts that are online do what they have left to do."""
        async with self._store.read() as view:
            online = {host.name for host in await view.hosts.all() if host.status.state is HostState.ONLINE}
            rows = await view.leftovers.all()
        hosts = {row.host for row in rows} & online
        await asyncio.gather(*(self._clear(host, rows) for host in sorted(hosts) if self._rights.has_reported(host)))

    async def _clear(self, host: HostName, rows: list[Leftover]) -> None:
        for row in rows:
            if row.host != host:
                continue
            try:
                command = BY_NAME[row.command]
                options = SendOptions(id=new_id(), patience=PATIENCE)
                await self._hosts.send(command, host, command.body.model_validate(row.body), options)
            except NotFoundError:
                pass  # it has it no more
            except UnavailableError as error:
                log.info("what %s has yet to clear away: %s", host, error)
                return
            except SeraiError as error:
                log.warning("%s has yet to clear away %s: %s", host, row.what, error)
                continue
            async with self._store.transaction() as tx:
                await tx.leftovers.drop(row.number)
                text = f"{host} has cleared away {row.what}"
                await tx.emit("host.cleared", f"host/{host}", "", text, command=row.command)
