"""Certificates, which a host asks the controller for."""

from __future__ import annotations

from serai.schema.resource import Frozen


class SignCertificate(Frozen):
    """On `Subjects.certificate(host)`, from that host: certify the key of `request` (PKCS #10, PEM) for `identity`.

    The identity is one of the host's own. Answered with `SignedCertificate`.
    """

    identity: str
    request: str


class SignedCertificate(Frozen):
    """PEM."""

    certificate: str
