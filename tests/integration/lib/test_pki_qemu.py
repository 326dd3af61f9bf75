"""QEMU's own TLS (GnuTLS), as its unprivileged user, with the folder made for it: both ends, both verified."""

import asyncio
import grp
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serai.lib.pki import CertificateAuthority, write_qemu_folder
from serai.lib.process import Completed, run, spawn

USER = "serai-qemu"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the unprivileged user can pass through (pytest's own is closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="serai-pki-"))
    # It makes its socket here too.
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


async def read_over_tls(folder: Path, server: Path, client: Path, name: str, *, verify: str = "yes") -> Completed:
    """Serve a disk by qemu-nbd and ask qemu-img for it, each with its identity; the server must be `name`."""
    disk, socket, log = folder / "disk", folder / "nbd.sock", folder / "nbd.log"
    disk.write_bytes(bytes(65536))
    serve = ["qemu-nbd", "--object", f"tls-creds-x509,id=tls0,endpoint=server,dir={server},verify-peer=yes"]
    serve += [
        "--tls-creds",
        "tls0",
        "--persistent",
        "--read-only",
        "--format",
        "raw",
        "--socket",
        str(socket),
        str(disk),
    ]
    nbd = await spawn(serve, user=USER, group=USER, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(30):
            while not socket.exists():
                assert nbd.alive, log.read_text()
                await asyncio.sleep(0.01)
        options = f"driver=nbd,server.type=unix,server.path={socket},tls-creds=tls0,tls-hostname={name}"
        show = [
            "qemu-img",
            "info",
            "--object",
            f"tls-creds-x509,id=tls0,endpoint=client,dir={client},verify-peer={verify}",
        ]
        return await run([*show, "--image-opts", options], check=False)
    finally:
        await nbd.kill()
        socket.unlink(missing_ok=True)


async def test_gnutls_accepts_our_own_and_nobody_else(folder: Path) -> None:
    gid = grp.getgrnam(USER).gr_gid
    authority = CertificateAuthority.create(folder / "ca")
    ends = {}
    for identity in ("h1", "h2"):
        files = authority.issue(identity, dns=[], ips=["127.0.0.1"], dir=folder / identity)
        ends[identity] = write_qemu_folder(files, folder / f"{identity}-qemu", gid)
    stranger = CertificateAuthority.create(folder / "other-ca").issue("h2", dns=[], ips=[], dir=folder / "stranger")
    forged = write_qemu_folder(stranger, folder / "forged-qemu", gid)

    good = await read_over_tls(folder, ends["h1"], ends["h2"], "h1")
    assert (good.returncode, good.stderr) == (0, b"")
    assert "virtual size: 64 KiB" in good.text
    wrong_name = await read_over_tls(folder, ends["h1"], ends["h2"], "h3")
    assert wrong_name.returncode != 0
    assert b"does not match the hostname" in wrong_name.stderr
    # It would take any server; the server does not take it.
    assert (await read_over_tls(folder, ends["h1"], forged, "h1", verify="no")).returncode != 0
    assert (await read_over_tls(folder, ends["h1"], ends["h2"], "h1", verify="no")).returncode == 0


async def test_the_folder_is_the_groups_only(folder: Path) -> None:
    gid = grp.getgrnam(USER).gr_gid
    files = CertificateAuthority.create(folder / "ca").issue("h1", dns=[], ips=[], dir=folder / "h1")
    target = write_qemu_folder(files, folder / "qemu", gid)
    names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in target.iterdir()}
    ends = {"server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"}
    assert set(names) == {"ca-cert.pem", "dh-params.pem", *ends}
    assert set(names.values()) == {0o640}
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert {file.stat().st_gid for file in [target, *target.iterdir()]} == {gid}
