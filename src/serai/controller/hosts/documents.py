"""Documents of VMs that hosts run and the database does not know: asked for, and taken in."""

from __future__ import annotations

import logging

from serai.controller.commands import SendOptions
from serai.controller.hosts.gateway import Gateway
from serai.controller.services import adoption
from serai.controller.services.rights import ALARM, Rights
from serai.controller.store import Store, View
from serai.lib.ids import new_id
from serai.lib.tasks import Tasks
from serai.schema.commands.vm import VM_DOCUMENT, ReadDocument
from serai.schema.errors import SeraiError, UnavailableError
from serai.schema.host import HostState
from serai.schema.ids import HostName
from serai.schema.lease import LeaseRecord

log = logging.getLogger(__name__)

AGAIN = 5.0
"""Seconds after which a host that did not answer is asked again."""


class Documents:
    """Reads documents from hosts, one task a VM and host: which host holds it by then is the leases' matter."""

    def __init__(self, store: Store, gateway: Gateway, rights: Rights) -> None:
        self._store = store
        self._gateway = gateway
        self._rights = rights
        self._tasks = Tasks("documents")

    async def stop(self) -> None:
        """Read no more; the host's next introduction begins again."""
        await self._tasks.close()

    def read(self, host: HostName, record: LeaseRecord) -> None:
        """Take the VM of a host's claim in, unless that is being done already."""
        name = f"document-{record.vm}-{host}"
        if name not in self._tasks and not self._tasks.closed:
            self._tasks.start(self._read(host, record), name)

    async def _read(self, host: HostName, record: LeaseRecord) -> None:
        while await self._wanted(host, record):
            try:
                options = SendOptions(id=new_id())
                document = await self._gateway.send(VM_DOCUMENT, host, ReadDocument(vm=record.vm), options)
            except UnavailableError as error:
                log.warning("VM %s on %s, which the database does not know: %s", record.vm, host, error)
                await self._store.clock.sleep(AGAIN)
                continue
            except SeraiError as error:
                await self._say_unknown(host, record, error)
                return
            async with self._store.transaction() as tx:
                if await _runs(tx, host):
                    await adoption.take_in(tx, self._rights, document, record, host)
            return

    async def _wanted(self, host: HostName, record: LeaseRecord) -> bool:
        async with self._store.read() as view:
            return await view.vms.seek(record.vm) is None and await _runs(view, host)

    async def _say_unknown(self, host: HostName, record: LeaseRecord, error: SeraiError) -> None:
        text = f"{host} runs a VM {record.vm} that the database does not know, and has no document of it: {error}"
        log.error("%s", text)
        async with self._store.transaction() as tx:
            await tx.emit("vm.unknown", f"host/{host}", record.vm, text, severity=ALARM, host=host)


async def _runs(view: View, host: HostName) -> bool:
    """Whether a host's claims count: what a fenced host had is over."""
    known = await view.hosts.named(host)
    return known is not None and known.status.state is not HostState.FENCED
