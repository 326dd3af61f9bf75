"""A host's two certificates, its agent's and its QEMUs': renewed in time, by keys that never leave the host."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from serai.lib.bus import Bus
from serai.lib.clock import Clock
from serai.lib.pki import TlsFiles, certificate_request, qemu_folder
from serai.schema.certificate import SignCertificate, SignedCertificate
from serai.schema.encoding import encode
from serai.schema.subjects import Subjects

log = logging.getLogger(__name__)

PERIOD = 3600.0
"""Seconds between two looks."""
TIMEOUT = 10.0


class HostCertificates:
    """The certificates in `pki`, the folder of the host's identity."""

    def __init__(self, host: str, pki: Path, bus: Bus, clock: Clock) -> None:
        self._host = host
        self._files = [TlsFiles.in_folder(pki), TlsFiles.in_folder(qemu_folder(pki))]
        self._bus = bus
        self._clock = clock

    @property
    def expiries(self) -> dict[str, datetime]:
        """When each identity's certificate ends."""
        return {tls.identity: tls.expires for tls in self._files}

    async def renew(self) -> None:
        """Renew what is due, in the files; contexts that were made before go on showing the old ones.

        Raises SeraiError if the controller does not answer, or refuses.
        """
        for tls in self._files:
            if self._clock.now() < tls.renewal:
                continue
            identity = tls.identity
            key, request = certificate_request(identity)
            ask = SignCertificate(identity=identity, request=request.decode())
            answer = await self._bus.request(Subjects.certificate(self._host), encode(ask), TIMEOUT)
            tls.renew(key, SignedCertificate.model_validate_json(answer).certificate.encode())
            log.info("the certificate of %s is renewed until %s", identity, tls.expires.date())
