"""The QMP side of a live migration: parameters, TLS, start, figures. The choreography is the host agent's.

TLS credentials are loaded as a migration begins, not as QEMU starts: certificates are renewed, and QEMU lives long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serai.drivers.hypervisor.base import MigrationSetup, MigrationStats, QmpError
from serai.drivers.hypervisor.qmp import Qmp
from serai.schema.errors import ConflictError, HostError, UnsupportedError

UNLIMITED = 1 << 40
"""Bytes per second that no link reaches: QEMU's own default is a limit of 128 MiB/s."""
TLS_CREDS = "migration-tls"
TLS_AUTHZ = "migration-peer"
START_TIMEOUT = 30.0
"""Seconds for commands that read keys or open connections."""


async def prepare_incoming(
    qmp: Qmp, setup: MigrationSetup, tls_dir: Path | None, listen_host: str, port_range: tuple[int, int]
) -> int:
    """Listen for one migration; return the port."""
    await _set_up(qmp, setup, tls_dir, "server")
    first, last = port_range
    host = f"[{listen_host}]" if ":" in listen_host else listen_host
    await _listen(qmp, f"tcp:{host}:{first}" + (f",to={last}" if last > first else ""))
    info = await qmp.execute("query-migrate")
    for address in info.get("socket-address", []):
        if address.get("type") == "inet":
            return int(address["port"])
    raise HostError(f"QEMU says of no port that it listens on it: {info}")


async def _listen(qmp: Qmp, uri: str) -> None:
    # Where QEMU can, it stays after a failed load and says why, instead of ending itself.
    arguments = {"uri": uri, "exit-on-error": False}
    try:
        await qmp.execute("migrate-incoming", arguments, timeout=START_TIMEOUT)
    except QmpError as error:
        if "exit-on-error" not in error.reason:
            raise
        await qmp.execute("migrate-incoming", {"uri": uri}, timeout=START_TIMEOUT)


async def migrate(qmp: Qmp, setup: MigrationSetup, tls_dir: Path | None, host: str, port: int) -> None:
    """Start to migrate to `host:port`."""
    await _set_up(qmp, setup, tls_dir, "client")
    address = f"[{host}]" if ":" in host else host
    await qmp.execute("migrate", {"uri": f"tcp:{address}:{port}"}, timeout=START_TIMEOUT)


async def _set_up(qmp: Qmp, setup: MigrationSetup, tls_dir: Path | None, endpoint: str) -> None:
    capabilities = [{"capability": name, "state": state} for name, state in setup.capabilities.items()]
    if capabilities:
        try:
            await qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
        except QmpError as error:
            if "during migration" in error.reason or "in progress" in error.reason:
                raise ConflictError("a migration of this VM is under way already") from error
            raise UnsupportedError(f"QEMU cannot migrate in the way that was asked for: {error.reason}") from error
    parameters: dict[str, Any] = {"max-bandwidth": setup.bandwidth_bytes or UNLIMITED}
    if setup.downtime_limit_ms:
        parameters["downtime-limit"] = setup.downtime_limit_ms
    parameters |= await _tls(qmp, setup.tls_hostname, tls_dir, endpoint)
    await qmp.execute("migrate-set-parameters", parameters)


async def _tls(qmp: Qmp, peer: str | None, tls_dir: Path | None, endpoint: str) -> dict[str, str]:
    """Load the credentials. A client checks the server's names; a server, that the client is `peer` and no other."""
    if peer is None:
        return {"tls-creds": "", "tls-hostname": "", "tls-authz": ""}
    if tls_dir is None:
        raise UnsupportedError("this VM was started without certificates for a migration with TLS")
    for name in (TLS_CREDS, TLS_AUTHZ):
        with contextlib.suppress(QmpError):
            await qmp.execute("object-del", {"id": name})
    creds = {"qom-type": "tls-creds-x509", "id": TLS_CREDS, "dir": str(tls_dir), "endpoint": endpoint}
    await qmp.execute("object-add", creds | {"verify-peer": True}, timeout=START_TIMEOUT)
    if endpoint == "client":
        return {"tls-creds": TLS_CREDS, "tls-hostname": peer, "tls-authz": ""}
    identity = {"qom-type": "authz-simple", "id": TLS_AUTHZ, "identity": f"CN={peer}"}
    await qmp.execute("object-add", identity)
    return {"tls-creds": TLS_CREDS, "tls-hostname": "", "tls-authz": TLS_AUTHZ}


def parse_stats(info: Mapping[str, Any]) -> MigrationStats:
    """`query-migrate`'s answer, where each member may be missing."""
    ram: Mapping[str, Any] = info.get("ram", {})
    return MigrationStats(
        status=str(info.get("status", "none")),
        downtime_ms=float(info.get("downtime", 0)),
        ram_transferred=int(ram.get("transferred", 0)),
        rounds=int(ram.get("dirty-sync-count", 0)),
        error=str(info.get("error-desc", "")),
    )
