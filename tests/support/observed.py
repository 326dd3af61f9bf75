"""What the kernel has, as iproute2 shows it: the calling thread's namespace, another view than the code's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from serai.lib.process import run_sync


def _shown(*argv: str) -> Any:
    return json.loads(run_sync(argv).stdout or "[]")


def forwarding_table(bridge: str) -> dict[str, str]:
    """What a bridge has learned or been told, without its ports' own addresses: MAC to the port's name."""
    rows = _shown("bridge", "-json", "fdb", "show", "br", bridge)
    return {row["mac"]: row["ifname"] for row in rows if row.get("master") == bridge and row["state"] != "permanent"}


@dataclass(frozen=True)
class Class:
    """An HTB class: its rates in tc's words, what it sent, and how many packets beyond its own rate."""

    rates: str
    sent: int
    own: int
    borrowed: int


def classes(link: str) -> dict[str, Class]:
    """The classes of a link, by number (`1:10`); none if it is not shaped."""
    text = run_sync(["tc", "-statistics", "class", "show", "dev", link]).text
    pattern = r"class htb (\S+) .*?(rate \S+ ceil \S+).*?Sent (\d+) bytes.*?lended: (\d+) borrowed: (\d+)"
    rows = re.findall(pattern, text, re.DOTALL)
    return {number: Class(rates, int(sent), int(own), int(lent)) for number, rates, sent, own, lent in rows}


def addresses(link: str) -> list[str]:
    """The IPv4 addresses of a link, `10.0.0.1/24`."""
    (shown,) = _shown("ip", "-4", "-json", "address", "show", "dev", link) or [{"addr_info": []}]
    return [f"{row['local']}/{row['prefixlen']}" for row in shown.get("addr_info", [])]


def sent(link: str) -> int:
    """Bytes that have left a link."""
    (shown,) = _shown("ip", "-statistics", "-json", "link", "show", "dev", link)
    return int(shown["stats64"]["tx"]["bytes"])


@dataclass(frozen=True)
class Link:
    """A link's name, kind (`bridge`; none: a physical one), MAC, MTU, the name of its bridge, and whether it is up."""

    name: str
    kind: str
    mac: str
    mtu: int
    master: str
    up: bool


def links() -> dict[str, Link]:
    """All links, by name."""
    rows = _shown("ip", "-json", "-details", "link", "show")
    found = [
        Link(
            row["ifname"],
            row.get("linkinfo", {}).get("info_kind", ""),
            row.get("address", ""),
            row["mtu"],
            row.get("master", ""),
            "UP" in row["flags"],
        )
        for row in rows
    ]
    return {link.name: link for link in found}
