"""What the kernel has, as iproute2 shows it: the calling thread's namespace, another view than the code's own."""

from __future__ import annotations

import json
from typing import Any

from serai.lib.process import run_sync


def _shown(*argv: str) -> Any:
    return json.loads(run_sync(argv).stdout or "[]")


def forwarding_table(bridge: str) -> dict[str, str]:
    """What a bridge has learned or been told, without its ports' own addresses: MAC to the port's name."""
    rows = _shown("bridge", "-json", "fdb", "show", "br", bridge)
    return {row["mac"]: row["ifname"] for row in rows if row.get("master") == bridge and row["state"] != "permanent"}


def addresses(link: str) -> list[str]:
    """The IPv4 addresses of a link, `10.0.0.1/24`."""
    (shown,) = _shown("ip", "-4", "-json", "address", "show", "dev", link) or [{"addr_info": []}]
    return [f"{row['local']}/{row['prefixlen']}" for row in shown.get("addr_info", [])]
