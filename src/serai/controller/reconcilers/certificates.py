"""The installation's CA at work: it signs what hosts ask for, keeps the controller's own certificate young, and warns.

A host is certified for its own two identities and nothing else, whatever names its request has. The bus lets no other
host ask on its subject, so that whoever asks there is known.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from serai.controller.store import Store
from serai.lib.bus import Bus, Message, Subscription
from serai.lib.clock import Clock
from serai.lib.pki import CA_WARNING, WARNING, CertificateAuthority, TlsFiles, qemu_identity
from serai.schema.certificate import SignCertificate, SignedCertificate
from serai.schema.encoding import encode
from serai.schema.errors import UnauthorizedError
from serai.schema.ids import HostName
from serai.schema.subjects import Subjects

log = logging.getLogger(__name__)

PERIOD = 3600.0
"""Seconds between two looks."""
AUTHORITY = "authority"
"""The name of the CA's own certificate in events."""


@dataclass(frozen=True)
class _Ending:
    """A certificate that ends at `end`, of which is warned from `warn` on."""

    identity: str
    resource: str
    resource_id: str
    end: datetime
    warn: datetime


class Certificates:
    """`own`: the controller's identity. `reload`: tells whoever else shows that certificate, such as nats-server."""

    def __init__(
        self,
        store: Store,
        authority: CertificateAuthority,
        own: TlsFiles,
        clock: Clock,
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._authority = authority
        self._own = own
        self._clock = clock
        self._reload = reload
        self._told: set[_Ending] = set()
        self._shown: datetime | None = None
        """The end of the certificate that others were told of last."""

    async def listen(self, bus: Bus) -> Subscription:
        """Sign for hosts from now on."""
        return await bus.subscribe(Subjects.certificate("*"), self.sign)

    async def sign(self, message: Message) -> bytes:
        """Answer a host. Raises UnauthorizedError for a host that is not known, or another's identity."""
        asked = SignCertificate.model_validate_json(message.payload)
        name = HostName(Subjects.host_of(message.subject))
        async with self._store.transaction() as tx:
            host = await tx.hosts.named(name)
            if host is None or asked.identity not in (f"host.{name}", qemu_identity(name)):
                raise UnauthorizedError(
                    "a host is certified for its own identities only", field="identity", value=asked.identity
                )
            certificate = self._authority.sign(asked.request.encode(), asked.identity)
            await tx.emit("certificate.renewed", f"host/{name}", host.id, f"{asked.identity} has a new certificate")
        return encode(SignedCertificate(certificate=certificate.decode()))

    async def look(self) -> None:
        """One pass: renew the controller's own certificate if that is due, and warn of what ends soon."""
        if self._clock.now() >= self._own.renewal:
            self._authority.renew(self._own)
            identity = self._own.identity
            async with self._store.transaction() as tx:
                await tx.emit("certificate.renewed", f"certificate/{identity}", "", f"{identity} has a new certificate")
        late = [one for one in await self._certificates() if self._clock.now() > one.warn and one not in self._told]
        if late:
            async with self._store.transaction() as tx:
                for one in late:
                    text = f"the certificate of {one.identity} ends on {one.end.date()}"
                    log.warning("%s", text)
                    facts = {"identity": one.identity, "expires": one.end.isoformat()}
                    await tx.emit("certificate.expires", one.resource, one.resource_id, text, **facts)
            self._told.update(late)
        # Also at the start: an earlier controller may have ended between its renewal and this.
        if self._shown != self._own.expires:
            await self._reload()
            self._shown = self._own.expires

    async def _certificates(self) -> list[_Ending]:
        own, end = self._own.identity, self._authority.expires
        found = [_Ending(AUTHORITY, f"certificate/{AUTHORITY}", "", end, end - CA_WARNING)]
        found.append(_Ending(own, f"certificate/{own}", "", self._own.expires, self._own.expires - WARNING))
        async with self._store.read() as view:
            for host in await view.hosts.all():
                ends = {} if host.status.facts is None else host.status.facts.certificates
                for identity, end in ends.items():
                    found.append(_Ending(identity, f"host/{host.name}", host.id, end, end - WARNING))
        return found
