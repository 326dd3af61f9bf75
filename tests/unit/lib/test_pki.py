"""Certificates and their files."""

import base64
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from serai.lib.clock import ManualClock
from serai.lib.pki import LEAF_LIFE, CertificateAuthority, TlsFiles, write_qemu_folder
from serai.schema.errors import ConflictError, InvalidError, NotFoundError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_identity(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    files = authority.issue("h1", dns=["h1.lan", "h1"], ips=["10.77.0.11", "::1"], dir=tmp_path / "h1")
    assert files == TlsFiles.in_folder(tmp_path / "h1")
    assert files.identity == "h1"
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["h1", "h1.lan"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.77.0.11", "::1"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(files.ca.read_bytes()))
    assert (mode(files.key), mode(tmp_path / "ca" / "ca-key.pem")) == (0o600, 0o600)
    assert (mode(tmp_path / "h1"), mode(tmp_path / "ca")) == (0o700, 0o700)
    files.server_context()
    files.client_context()


def test_a_ca_is_made_once(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        CertificateAuthority.load(tmp_path)
    CertificateAuthority.ensure(tmp_path)
    before = (tmp_path / "ca.pem").read_bytes()
    CertificateAuthority.ensure(tmp_path)
    with pytest.raises(ConflictError, match="lock out"):
        CertificateAuthority.create(tmp_path)
    files = CertificateAuthority.load(tmp_path).issue("ctl", dns=[], ips=[], dir=tmp_path / "ctl")
    assert files.ca.read_bytes() == before


def test_bad_names_and_addresses_are_refused(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    for identity in ("", "H1", "a b", "x" * 64, "-a", "a*"):
        with pytest.raises(InvalidError, match="identity"):
            authority.issue(identity, dns=[], ips=[], dir=tmp_path / "x")
    with pytest.raises(InvalidError, match=r"10\.0\.0\.300"):
        authority.issue("h1", dns=[], ips=["10.0.0.300"], dir=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_validity_follows_the_clock(tmp_path: Path) -> None:
    start = datetime(2030, 5, 1, tzinfo=UTC)
    files = CertificateAuthority.create(tmp_path / "ca", clock=ManualClock(start)).issue(
        "h1", dns=[], ips=[], dir=tmp_path / "h1"
    )
    assert files.expires == start + LEAF_LIFE
    assert x509.load_pem_x509_certificate(files.cert.read_bytes()).not_valid_before_utc == start - timedelta(days=1)


def test_qemu_finds_diffie_hellman_parameters(tmp_path: Path) -> None:
    tls = CertificateAuthority.ensure(tmp_path / "ca").issue("h1", dns=["h1"], ips=[], dir=tmp_path / "h1")
    text = (write_qemu_folder(tls, tmp_path / "qemu", os.getgid()) / "dh-params.pem").read_text().splitlines()
    der = base64.b64decode("".join(text[1:-1]))
    prime = der[9:-3].hex().upper()
    # Begin and end of ffdhe2048 as RFC 7919 prints it.
    assert prime.startswith("FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1")
    assert prime.endswith("886B423861285C97FFFFFFFFFFFFFFFF")
    assert len(prime) == 512
