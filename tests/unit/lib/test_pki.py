"""Certificates and their files."""

import base64
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from serai.lib.clock import ManualClock
from serai.lib.pki import (
    CA_LIFE,
    LEAF_LIFE,
    CertificateAuthority,
    TlsFiles,
    ca_expires,
    certificate_request,
    qemu_folder,
    write_qemu_folder,
)
from serai.schema.errors import ConflictError, HostError, InvalidError, NotFoundError, UnauthorizedError


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


def test_a_host_has_two_identities(tmp_path: Path) -> None:
    authority = CertificateAuthority.ensure(tmp_path / "ca")
    authority.issue_host("h1", tmp_path / "h1")
    agent, qemu = TlsFiles.in_folder(tmp_path / "h1"), TlsFiles.in_folder(qemu_folder(tmp_path / "h1"))
    before = (agent.cert.read_bytes(), qemu.cert.read_bytes())
    authority.issue_host("h1", tmp_path / "h1")
    assert before == (agent.cert.read_bytes(), qemu.cert.read_bytes())
    # Nothing else: whoever breaks out of a guest is known by neither the agent's name nor an address.
    assert list(agent.names) == [x509.DNSName("host.h1")]
    assert list(qemu.names) == [x509.DNSName("qemu.h1")]
    qemu.cert.unlink()
    authority.issue_host("h1", tmp_path / "h1")
    assert before[0] == agent.cert.read_bytes()
    assert before[1] != qemu.cert.read_bytes()


def test_a_renewal_is_due_at_two_thirds_of_a_life(tmp_path: Path) -> None:
    start = datetime(2030, 5, 1, tzinfo=UTC)
    files = CertificateAuthority.create(tmp_path / "ca", clock=ManualClock(start)).issue(
        "h1", dns=[], ips=[], dir=tmp_path / "h1"
    )
    assert files.renewal == start + LEAF_LIFE * 2 / 3


def test_a_renewal_has_a_new_key_and_the_same_names(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = CertificateAuthority.create(tmp_path / "ca", clock=clock)
    files = authority.issue("controller", dns=["ctl"], ips=["10.0.0.1", "::1"], dir=tmp_path / "ctl")
    names, before = list(files.names), x509.load_pem_x509_certificate(files.cert.read_bytes())
    clock.advance(86400)
    authority.renew(files)
    assert list(files.names) == names
    assert files.expires == clock.now() + LEAF_LIFE
    assert x509.load_pem_x509_certificate(files.cert.read_bytes()).public_key() != before.public_key()
    assert mode(files.cert) == 0o600
    files.server_context()


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = CertificateAuthority.create(tmp_path / "ca", clock=clock)
    clock.advance((CA_LIFE - timedelta(days=9)).total_seconds())
    files = authority.issue("h1", dns=[], ips=[], dir=tmp_path / "h1")
    assert files.expires == authority.expires == ca_expires(tmp_path / "ca")
    assert files.renewal == clock.now() + timedelta(days=6)


def test_only_the_right_certificate_takes_the_place_of_another(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    stranger = CertificateAuthority.create(tmp_path / "stranger")
    files = authority.issue("h1", dns=[], ips=[], dir=tmp_path / "h1")
    before = files.cert.read_bytes()
    key, request = certificate_request("h1")
    for wrong in (
        stranger.sign(request, "h1"),
        authority.sign(request, "h2"),
        authority.sign(certificate_request("h1")[1], "h1"),
    ):
        with pytest.raises(UnauthorizedError):
            files.renew(key, wrong)
        assert files.cert.read_bytes() == before
    files.renew(key, authority.sign(request, "h1"))
    assert files.cert.read_bytes() != before


def test_what_is_certified_is_not_what_the_request_says(tmp_path: Path) -> None:
    """A host that was taken over may write any name into it."""
    authority = CertificateAuthority.create(tmp_path / "ca")
    key = ec.generate_private_key(ec.SECP256R1())
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "controller")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("controller")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    signed = x509.load_pem_x509_certificate(authority.sign(asked.public_bytes(serialization.Encoding.PEM), "host.h1"))
    assert signed.subject.rfc4514_string() == "CN=host.h1"
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("host.h1")]
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_what_is_no_request_is_not_certified(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca")
    short = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    key = rsa.generate_private_key(65537, 2048)
    spoilt = bytearray(certificate_request("h1")[1])
    spoilt[-60] ^= 1
    for request in (b"", b"junk", short.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), spoilt):
        with pytest.raises(InvalidError, match="no request"):
            authority.sign(bytes(request), "h1")


def test_qemus_folder_is_written_only_where_it_changed(tmp_path: Path) -> None:
    authority = CertificateAuthority.ensure(tmp_path / "ca")
    authority.issue_host("h1", tmp_path / "h1")
    tls = TlsFiles.in_folder(qemu_folder(tmp_path / "h1"))
    folder = write_qemu_folder(tls, tmp_path / "qemu", os.getgid())
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    write_qemu_folder(tls, folder, os.getgid())
    assert {file.name: file.stat().st_ino for file in folder.iterdir()} == before
    (folder / "server-key.pem").write_text("an older one")
    (folder / "client-key.pem").chmod(0o644)
    write_qemu_folder(tls, folder, os.getgid())
    after = {file.name: file.stat().st_ino for file in folder.iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"server-key.pem", "client-key.pem"}
    assert (folder / "server-key.pem").read_bytes() == (folder / "client-key.pem").read_bytes()
    assert (folder / "server-cert.pem").read_bytes() + (folder / "server-key.pem").read_bytes() == tls.cert.read_bytes()
    assert stat.S_IMODE((folder / "client-key.pem").stat().st_mode) == 0o640


def test_qemus_folder_says_what_is_wrong(tmp_path: Path) -> None:
    authority = CertificateAuthority.ensure(tmp_path / "ca")
    authority.issue("host.h1", dns=[], ips=[], dir=tmp_path / "h1")
    tls = TlsFiles.in_folder(qemu_folder(tmp_path / "h1"))
    with pytest.raises(NotFoundError) as missing:
        write_qemu_folder(tls, tmp_path / "qemu", os.getgid())
    assert str(missing.value.info.value) == str(tls.cert)
    authority.issue_host("h1", tmp_path / "h1")
    (tmp_path / "file").touch()
    with pytest.raises(HostError) as unwritable:
        write_qemu_folder(tls, tmp_path / "file/qemu", os.getgid())
    assert "cannot be written" in unwritable.value.info.message
    assert unwritable.value.info.remedy
