"""Certificates: one small CA for an installation, and one identity for each agent.

An identity is a name (`ctl`, `h1`, …) that stands in a certificate as its common name and as its first DNS name; the
bus maps it to permissions and the two ends of a stream check it. All keys are EC P-256: quick to make, and understood
by OpenSSL, Go and the GnuTLS in QEMU alike. Our own connections speak TLS 1.3 and always ask for both certificates.

A folder of an identity holds `ca.pem`, and its certificate and key in one file, `identity.pem`, so that a renewal
replaces both at once. The CA's folder holds `ca.pem` and `ca-key.pem`. Keys have mode 0600.

Certificates are renewed at two thirds of their life. A host makes a new key and asks the controller, who holds the CA,
to sign it (`certificate_request`, `CertificateAuthority.sign`, `TlsFiles.renew`); the key never leaves the host.

A host has two identities: `host.h1` is its agent's, `qemu.h1` its QEMUs', for migrations alone. QEMU's user can read
that key, and whoever breaks out of a guest with it: so it has no name or address beside its own, the bus knows no such
identity, and our own connections refuse it. QEMU wants other names and a group that may read: `write_qemu_folder`.
"""

import base64
import ipaddress
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serai.lib import atomicfile
from serai.lib.clock import Clock, SystemClock
from serai.schema.errors import ConflictError, HostError, InvalidError, NotFoundError, UnauthorizedError

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=730)
WARNING = LEAF_LIFE / 6
"""Before the end of a certificate: it should have been renewed at twice that time before it."""
CA_WARNING = timedelta(days=365)
"""Before the end of a CA: its installation needs a new one by then."""
CLOCK_SKEW = timedelta(days=1)
"""Certificates are valid from a day ago: a laptop with a slow clock must not be locked out."""

IDENTITY = re.compile(r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")
QEMU = "qemu."
"""The start of the identities that QEMU has."""


def qemu_identity(host: str) -> str:
    """Return the identity of a host's QEMUs, which the two ends of a migration check."""
    return f"{QEMU}{host}"


def qemu_folder(host_folder: Path) -> Path:
    """Return the folder of a host's QEMU identity, within the folder of the host's own."""
    return host_folder / "migration"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of one identity; certificate and key may be in the same."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "TlsFiles":
        """Name the files of an identity's folder; nothing is read."""
        return cls(ca=folder / "ca.pem", cert=folder / "identity.pem", key=folder / "identity.pem")

    @property
    def identity(self) -> str:
        """The identity in the certificate (its common name)."""
        return _common_name(self._certificate().subject)

    @property
    def expires(self) -> datetime:
        """When the certificate ends (aware, UTC)."""
        return self._certificate().not_valid_after_utc

    @property
    def names(self) -> x509.SubjectAlternativeName:
        """The names that others may know it by."""
        return self._certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    @property
    def renewal(self) -> datetime:
        """When the certificate is to be renewed: at two thirds of its life."""
        certificate = self._certificate()
        begin, end = certificate.not_valid_before_utc + CLOCK_SKEW, certificate.not_valid_after_utc
        return begin + (end - begin) * 2 / 3

    def renew(self, key: bytes, certificate: bytes) -> None:
        """Replace key and certificate (PEM), both at once. Raises UnauthorizedError unless they are this identity's.

        Contexts that were made before go on with the old ones; see `reload`.
        """
        new = x509.load_pem_x509_certificate(certificate)
        try:
            new.verify_directly_issued_by(x509.load_pem_x509_certificate(self.ca.read_bytes()))
        except (InvalidSignature, ValueError, TypeError) as error:
            raise UnauthorizedError("the new certificate is of another authority", field="ca", value=self.ca) from error
        private = serialization.load_pem_private_key(key, password=None)
        if private.public_key() != new.public_key() or _common_name(new.subject) != self.identity:
            raise UnauthorizedError("the new certificate is another's", field="identity", value=self.identity)
        atomicfile.write_bytes(self.cert, certificate + key, mode=0o600)

    def reload(self, context: ssl.SSLContext) -> None:
        """Have a context show what the files hold now; connections that it has made keep what they showed."""
        context.load_cert_chain(self.cert, self.key)

    def server_context(self) -> ssl.SSLContext:
        """TLS for an end that listens: shows this identity and demands a certificate of the same CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._load(context)

    def client_context(self) -> ssl.SSLContext:
        """TLS for an end that connects: shows this identity and checks the server's name or address."""
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.ca)
        self.reload(context)
        return context

    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert.read_bytes())


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return the identity of the other end, proven by its certificate.

    Raises UnauthorizedError if it showed none, or one that is good for migrations only.
    """
    certificate = connection.getpeercert(binary_form=True)
    if certificate is None:
        raise UnauthorizedError("the other end showed no certificate")
    identity = _common_name(x509.load_der_x509_certificate(certificate).subject)
    if identity.startswith(QEMU):
        raise UnauthorizedError("the certificate is QEMU's, for migrations only", field="identity", value=identity)
    return identity


def _common_name(name: x509.Name) -> str:
    (attribute,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return attribute.value if isinstance(attribute.value, str) else attribute.value.decode()


def ca_expires(folder: Path) -> datetime:
    """When the certificate of the CA in a folder ends, for who may not read its key."""
    return x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()).not_valid_after_utc


def certificate_request(identity: str) -> tuple[bytes, bytes]:
    """A new key, and the request that it be certified for the identity; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(identity)).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


class CertificateAuthority:
    """The installation's CA. Whoever holds its folder can become anyone: it stays with the controller."""

    def __init__(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock | None = None
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock or SystemClock()

    @property
    def expires(self) -> datetime:
        """When the CA's own certificate ends, and with it every other."""
        return self._certificate.not_valid_after_utc

    @classmethod
    def create(cls, folder: Path, *, clock: Clock | None = None) -> "CertificateAuthority":
        """Make a CA in the folder (made with mode 0700 if absent); raises ConflictError if one is there."""
        clock = clock or SystemClock()
        if (folder / "ca-key.pem").exists():
            raise ConflictError(
                "there is a certificate authority already",
                field="folder",
                value=folder,
                remedy="Use it; a new one would lock out every agent.",
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Serai CA")
        certificate = (
            _builder(name, name, key.public_key(), clock.now(), clock.now() + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The key last: its presence says that the CA is complete.
        atomicfile.write_bytes(folder / "ca.pem", _pem(certificate), mode=0o644)
        atomicfile.write_bytes(folder / "ca-key.pem", _key_pem(key), mode=0o600)
        return cls(certificate, key, clock)

    @classmethod
    def load(cls, folder: Path, *, clock: Clock | None = None) -> "CertificateAuthority":
        """Load the CA of the folder; raises NotFoundError if there is none."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca-key.pem").read_bytes(), password=None)
        except FileNotFoundError as error:
            raise NotFoundError("no certificate authority there", field="folder", value=folder) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidError("the CA's key is not an EC key", field="folder", value=folder)
        return cls(certificate, key, clock)

    @classmethod
    def ensure(cls, folder: Path, *, clock: Clock | None = None) -> "CertificateAuthority":
        """Load the CA of the folder, made first if there is none."""
        if (folder / "ca-key.pem").exists():
            return cls.load(folder, clock=clock)
        return cls.create(folder, clock=clock)

    def issue(self, identity: str, *, dns: Sequence[str], ips: Sequence[str], dir: Path) -> TlsFiles:  # noqa: A002
        """Make a key and a certificate for the identity in `dir` (made with mode 0700 if absent).

        `dns` and `ips` are further names under which others connect to it. Valid 730 days, as client and server.
        Raises InvalidError for a name or an address that cannot be used. An older certificate there is replaced.
        """
        key, request = certificate_request(identity)
        certificate = self.sign(request, identity, dns=dns, ips=ips)
        dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = TlsFiles.in_folder(dir)
        atomicfile.write_bytes(files.cert, certificate + key, mode=0o600)
        atomicfile.write_bytes(files.ca, _pem(self._certificate), mode=0o644)
        return files

    def sign(self, request: bytes, identity: str, *, dns: Sequence[str] = (), ips: Sequence[str] = ()) -> bytes:
        """Certify the key of a request (PEM) for the identity, whatever names the request has; PEM.

        Raises InvalidError for a request that is none, and as `issue` does.
        """
        subject = _subject(identity)
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dict.fromkeys((identity, *dns))]
        names += [x509.IPAddress(_address(ip)) for ip in dict.fromkeys(ips)]
        key = _requested_key(request)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        now = self._clock.now()
        certificate = (
            _builder(subject, self._certificate.subject, key, now, min(now + LEAF_LIFE, self.expires))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer_key, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate)

    def renew(self, tls: TlsFiles) -> None:
        """Renew an identity of our own, with the names that it has."""
        names = tls.names
        key, request = certificate_request(tls.identity)
        dns = names.get_values_for_type(x509.DNSName)
        ips = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
        tls.renew(key, self.sign(request, tls.identity, dns=dns, ips=ips))

    def issue_host(self, host: str, dir: Path) -> None:  # noqa: A002
        """Make what is missing of a host's two identities: its agent's in `dir`, its QEMUs' in `qemu_folder(dir)`.

        Neither has another name: whoever connects asks for the identity. Raises as `issue` does.
        """
        for identity, folder in ((f"host.{host}", dir), (qemu_identity(host), qemu_folder(dir))):
            if not TlsFiles.in_folder(folder).cert.exists():
                self.issue(identity, dns=(), ips=(), dir=folder)


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        found = x509.load_pem_x509_csr(request)
        key = found.public_key()
        if found.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
            return key
    except ValueError:
        pass
    raise InvalidError(
        "this is no request for a certificate",
        field="request",
        remedy="Send PKCS #10 in PEM, signed by its own key, which is one of the curve P-256.",
    )


def write_qemu_folder(tls: TlsFiles, dir: Path, gid: int) -> Path:  # noqa: A002
    """Copy an identity into `dir` under the names that QEMU's tls-creds-x509 reads, for the group `gid`; return `dir`.

    The folder gets mode 0750 and the keys 0640, so that QEMU, which is nobody special, reads them and no one else does.
    What is there already and right is left alone. Raises NotFoundError for an identity that was never issued, HostError
    when it cannot be written.
    """
    try:
        both, ca = tls.cert.read_bytes(), tls.ca.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            "the certificate for migrations is not there",
            field="pki",
            value=error.filename,
            remedy="Issue it beside the host's own, by the authority that issued that.",
        ) from error
    certificate, begin, key = both.partition(b"-----BEGIN PRIVATE KEY-----")
    files = {"ca-cert.pem": ca}
    for end in ("server", "client"):
        files |= {f"{end}-key.pem": begin + key, f"{end}-cert.pem": certificate}
    # Without them QEMU searches for a prime of its own at the start of each migration: 0.1 to 0.6 s, and it never comes
    # to be used with TLS 1.3's curves.
    files["dh-params.pem"] = _ffdhe2048()
    try:
        dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(dir, -1, gid)
        dir.chmod(0o750)
        for name, content in files.items():
            if not _is_there(dir / name, content, gid):
                atomicfile.write_bytes(dir / name, content, mode=0o640, gid=gid)
    except OSError as error:
        raise HostError(
            f"the certificates for migrations cannot be written: {error.strerror}",
            field="pki",
            value=dir,
            remedy="Make room on its file system, or make it writable; then start the agent again.",
        ) from error
    return dir


def _is_there(path: Path, content: bytes, gid: int) -> bool:
    try:
        facts = path.stat()
        return (facts.st_mode & 0o7777, facts.st_gid) == (0o640, gid) and path.read_bytes() == content
    except FileNotFoundError:
        return False


def _ffdhe2048() -> bytes:
    """The Diffie-Hellman group ffdhe2048 of RFC 7919, appendix A.1, from its formula, as PEM."""
    scale = 1 << 1918 + 64
    e, term, n = 0, scale, 1
    while term:  # e = 1/0! + 1/1! + 1/2! + …, with 64 bits to spare for what each division drops
        e += term
        term //= n
        n += 1
    prime = 2**2048 - 2**1984 + ((e >> 64) + 560316) * 2**64 - 1
    # DER of PKCS #3: a sequence of prime and generator. The prime fills its 256 bytes; a zero keeps it positive.
    numbers = b"\x02\x82\x01\x01\x00" + prime.to_bytes(256, "big") + b"\x02\x01\x02"
    body = base64.encodebytes(b"\x30\x82" + len(numbers).to_bytes(2, "big") + numbers)
    return b"-----BEGIN DH PARAMETERS-----\n" + body + b"-----END DH PARAMETERS-----\n"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidError("not an IP address", field="ips", value=text) from error


def _subject(identity: str) -> x509.Name:
    if not IDENTITY.match(identity):
        raise InvalidError(
            "not an identity",
            field="identity",
            value=identity,
            remedy="Use lower-case letters, digits, dots and dashes, 63 at most.",
        )
    return _name(identity)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        # TLS 1.3 has no use for it, but QEMU refuses a certificate without.
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
