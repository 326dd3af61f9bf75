"""Taking an uplink: a bridge goes on the machine's link, its addresses and routes with it, and nobody is cut off.

The change is one `ip -batch`, computed beforehand with its inverse by `plan_take`. Both are in a file before anything
changes, and a watchdog process of its own (a session of its own: it outlives the agent, the SSH session and the kill -9
of either) applies the inverse when the time is over, unless the file says `confirmed` by then. A confirmed take is
applied again after a reboot, when the agent starts.

Only what `ip` shows is moved: a DHCP client that goes on running on the uplink itself must be told of the bridge.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from serai.lib import atomicfile
from serai.lib.ids import new_secret
from serai.lib.process import run, run_sync, spawn
from serai.schema.errors import ConflictError, HostError, InvalidError, NotFoundError
from serai.schema.messages import UplinkTaken

FILE = "uplink.json"


class Phase(StrEnum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    UNDONE = "undone"


class Uplink(BaseModel):
    """What a link is and has, as `ip -json` shows it. `routes` are arguments of `ip route add`, without the device."""

    model_config = ConfigDict(frozen=True)

    name: str
    mac: str
    mtu: int
    addresses: list[str]
    routes: list[str]
    routes6: list[str]


class Take(BaseModel):
    """One take, as the file has it. `deadline` is wall time in seconds since the epoch; `do`, `undo`: `ip -batch`."""

    model_config = ConfigDict(frozen=True)

    token: str
    uplink: str
    bridge: str
    phase: Phase
    deadline: float
    do: list[str]
    undo: list[str]


def plan_take(uplink: Uplink, bridge: str) -> tuple[list[str], list[str]]:
    """(do, undo) as lines for `ip -batch`. Pure."""
    name = uplink.name
    do = [
        f"link add name {bridge} address {uplink.mac} mtu {uplink.mtu} type bridge stp_state 0 forward_delay 0",
        f"link set dev {bridge} up",
        f"link set dev {name} master {bridge}",
        *[f"addr del {address} dev {name}" for address in uplink.addresses],
        *[f"addr add {address} dev {bridge}" for address in uplink.addresses],
        *[f"route replace {route} dev {bridge}" for route in uplink.routes],
        *[f"-6 route replace {route} dev {bridge}" for route in uplink.routes6],
    ]
    undo = [
        f"link set dev {name} nomaster",
        *[f"addr del {address} dev {bridge}" for address in uplink.addresses],
        *[f"addr add {address} dev {name}" for address in uplink.addresses],
        *[f"route replace {route} dev {name}" for route in uplink.routes],
        *[f"-6 route replace {route} dev {name}" for route in uplink.routes6],
        f"link del dev {bridge}",
    ]
    return do, undo


def parse_uplink(link: dict[str, Any], routes: list[dict[str, Any]], routes6: list[dict[str, Any]]) -> Uplink:
    """From `ip -json address show dev X` and `ip -json route show dev X`."""
    addresses = []
    for row in link.get("addr_info", []):
        if row.get("scope") != "link":
            broadcast = f" broadcast {row['broadcast']}" if "broadcast" in row else ""
            addresses.append(f"{row['local']}/{row['prefixlen']}{broadcast}")
    return Uplink(
        name=link["ifname"],
        mac=link["address"],
        mtu=link["mtu"],
        addresses=addresses,
        routes=[words for row in routes if (words := _route(row))],
        routes6=[words for row in routes6 if not row["dst"].startswith("fe80") and (words := _route(row))],
    )


def _route(row: dict[str, Any]) -> str:
    if row.get("protocol") == "kernel":
        return ""  # comes back with its address
    words = [row["dst"]]
    for key, option in (("gateway", "via"), ("protocol", "proto"), ("metric", "metric"), ("prefsrc", "src")):
        if key in row:
            words += [option, str(row[key])]
    if row.get("scope") == "link":
        words += ["scope", "link"]
    return " ".join(words)


async def look(name: str, enter: Sequence[str] = ()) -> Uplink:
    """What the link is and has now. Raises NotFoundError, ConflictError for one that is in a bridge already."""
    shown = await run([*enter, "ip", "-json", "address", "show", "dev", name], check=False)
    if shown.returncode != 0:
        raise NotFoundError(
            "this host has no such link", field="uplink", value=name, remedy="See 'ip link' on the host for its links."
        )
    (link,) = json.loads(shown.stdout)
    if "master" in link:
        raise ConflictError(f"the link is a port of {link['master']} already", field="uplink", value=name)
    if link.get("link_type") != "ether":
        raise InvalidError("only an Ethernet link can be a bridge's uplink", field="uplink", value=name)
    routes = json.loads((await run([*enter, "ip", "-json", "route", "show", "dev", name])).stdout or b"[]")
    shown6 = await run([*enter, "ip", "-6", "-json", "route", "show", "dev", name], check=False)
    routes6 = json.loads(shown6.stdout or b"[]")
    return parse_uplink(link, routes, routes6)


class UplinkTaker:
    """Takes one uplink of this host. `state` is the host's state folder; `enter` an argv prefix into its namespace."""

    def __init__(self, state: Path, enter: Sequence[str] = ()) -> None:
        self._file = state / FILE
        self._enter = tuple(enter)
        self._lock = asyncio.Lock()

    def current(self) -> Take | None:
        """The newest take, if there was one."""
        try:
            return Take.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None

    async def start(self) -> None:
        """After a reboot: take a confirmed uplink again. One whose time was over when the machine died stays undone."""
        take = self.current()
        if take is None or take.phase is not Phase.CONFIRMED:
            return
        if (await run([*self._enter, "ip", "link", "show", "dev", take.bridge], check=False)).returncode == 0:
            return
        do, undo = plan_take(await look(take.uplink, self._enter), take.bridge)
        await _apply(do, undo, self._enter)

    async def take(self, uplink: str, bridge: str, within: float) -> UplinkTaken:
        """Put `bridge` on `uplink`, undone after `within` seconds unless confirmed.

        Raises NotFoundError, ConflictError, HostError; then nothing is changed.
        """
        async with self._lock:
            present = self.current()
            if present is not None and present.phase is Phase.PENDING and present.deadline > time.time():
                raise ConflictError(
                    f"{present.uplink} was taken and is not confirmed yet",
                    field="uplink",
                    value=uplink,
                    remedy="Confirm it, or wait until it is undone.",
                )
            if (await run([*self._enter, "ip", "link", "show", "dev", bridge], check=False)).returncode == 0:
                raise ConflictError(
                    "there is such a link already", field="bridge", value=bridge, remedy="Choose another."
                )
            do, undo = plan_take(await look(uplink, self._enter), bridge)
            take = Take(
                token=new_secret(),
                uplink=uplink,
                bridge=bridge,
                phase=Phase.PENDING,
                deadline=time.time() + within,
                do=do,
                undo=undo,
            )
            self._write(take)
            # The watchdog is there before the change: there is no moment in which nobody would undo it.
            watchdog = [sys.executable, "-m", "serai.drivers.network.uplink", str(self._file), take.token]
            child = await spawn([*self._enter, *watchdog])
            try:
                await _apply(do, undo, self._enter)
            except BaseException:
                self._write(take.model_copy(update={"phase": Phase.UNDONE}))
                await child.kill()
                raise
            deadline = datetime.now(UTC) + timedelta(seconds=take.deadline - time.time())
            return UplinkTaken(token=take.token, deadline=deadline)

    async def confirm(self, token: str) -> None:
        """Keep it. An empty token means the one that is pending. Raises ConflictError when it is too late."""
        async with self._lock:
            take = self.current()
            if take is None or (token and take.token != token):
                raise NotFoundError("there is no such take to confirm", field="token")
            if take.phase is Phase.CONFIRMED:
                return
            if take.phase is Phase.UNDONE or take.deadline <= time.time():
                raise ConflictError(
                    "it was not confirmed in time and is undone",
                    field="uplink",
                    value=take.uplink,
                    remedy="Take it again, and confirm sooner or with a longer time.",
                )
            self._write(take.model_copy(update={"phase": Phase.CONFIRMED}))

    def _write(self, take: Take) -> None:
        atomicfile.write_text(self._file, take.model_dump_json(), mode=0o600)


async def _apply(do: list[str], undo: list[str], enter: Sequence[str]) -> None:
    done = await run([*enter, "ip", "-batch", "-"], input="\n".join(do).encode() + b"\n", check=False)
    if done.returncode != 0:
        await run([*enter, "ip", "-force", "-batch", "-"], input="\n".join(undo).encode() + b"\n", check=False)
        raise HostError(f"the uplink could not be taken, and is as it was: {done.stderr.decode().strip()}")


def watch(file: Path, token: str) -> None:
    """The watchdog: wait for the deadline of this take; undo it unless it was confirmed, or another followed."""
    while True:
        take = Take.model_validate_json(file.read_bytes())
        if take.token != token or take.phase is not Phase.PENDING:
            return
        left = take.deadline - time.time()
        if left <= 0:
            break
        time.sleep(min(left, 0.2))
    run_sync(["ip", "-force", "-batch", "-"], input="\n".join(take.undo).encode() + b"\n", check=False)
    atomicfile.write_text(file, take.model_copy(update={"phase": Phase.UNDONE}).model_dump_json(), mode=0o600)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), sys.argv[2])
