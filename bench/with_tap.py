"""`with_tap.py STAMP NAME MAC BRIDGE PROGRAM …`: become a program that finds an open tap as descriptor 3.

The monotonic time just before goes to the file STAMP: what this interpreter took is not the program's.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
DESCRIPTOR = 3


def main() -> None:
    """Open, enslave, exec."""
    stamp, name, mac, bridge, *program = sys.argv[1:]
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    subprocess.run(["ip", "link", "set", name, "address", mac, "master", bridge, "up"], check=True)
    if tap != DESCRIPTOR:
        os.dup2(tap, DESCRIPTOR)
    os.set_inheritable(DESCRIPTOR, True)
    Path(stamp).write_text(repr(time.monotonic()), encoding="ascii")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
