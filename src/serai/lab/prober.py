"""The measuring process of a probe: sends echo requests on a fixed beat and writes down when each was answered.

`python -m serai.lab.prober ADDRESS --interval-ns N --kinds icmp,udp --out FILE` runs until SIGTERM (or `--for-ns`),
then writes FILE: one line of JSON (see `main`), then arrays of 64-bit integers, a number for each beat: by how much it
was late, and for each kind when its request was sent and when answered, in nanoseconds of CLOCK_MONOTONIC, 0 for
"never". FILE with `.answered` appended appears when every kind has been answered once.

Precision: one thread, so that nothing of our own competes for the interpreter; deadlines are absolute, so that no
delay adds up; replies carry the kernel's receive time, so that our own delays do not count; a real-time scheduling
class where it is permitted, no garbage collection, memory locked. What is left is measured as well: by how much each
beat missed its deadline, so that the prober's own noise is never taken for an outage.

It imports nothing but the standard library: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import time
from array import array

LINGER_NS = 1_000_000_000
"""How long answers to the last requests are waited for."""
UDP_ECHO_PORT = 7
FIFO_PRIORITY = 20
SOL_RAW, ICMP_FILTER = 255, 1
ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST = 0, 8
SO_TIMESTAMPNS = 35
"""asm-generic/socket.h; the same on every architecture that Debian's QEMU package runs on, except PA-RISC and SPARC."""
PR_SET_TIMERSLACK = 29
MCL_CURRENT_AND_FUTURE = 3
PAYLOAD = struct.Struct("!8sQ")
"""A mark of this run, and the request's number."""
_CMSG = socket.CMSG_SPACE(16)


class UdpEcho:
    """UDP to the echo service; connected, so that only its answers arrive."""

    def __init__(self, address: str, mark: bytes, port: int = UDP_ECHO_PORT) -> None:
        self._mark = mark
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((address, port))

    def request(self, number: int) -> bytes:
        """The packet of that number: the mark and the number."""
        return PAYLOAD.pack(self._mark, number)

    def number(self, packet: bytes) -> int | None:
        """The number of the request that the packet answers; None if it is no answer to one of ours."""
        return _marked(packet, self._mark)


class IcmpEcho:
    """ICMP echo over a raw socket; the payload holds the full number, the header's sequence number its end."""

    def __init__(self, address: str, mark: bytes) -> None:
        self._mark = mark
        self._id = int.from_bytes(mark[:2], "big")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        wanted = ~(1 << ICMP_ECHO_REPLY) & 0xFFFFFFFF
        self.socket.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", wanted))
        self.socket.connect((address, 0))

    def request(self, number: int) -> bytes:
        """An ICMP echo request (RFC 792)."""
        body = PAYLOAD.pack(self._mark, number)
        header = struct.pack("!BBHHH", ICMP_ECHO_REQUEST, 0, 0, self._id, number & 0xFFFF)
        return struct.pack("!BBHHH", ICMP_ECHO_REQUEST, 0, _checksum(header + body), self._id, number & 0xFFFF) + body

    def number(self, packet: bytes) -> int | None:
        """The number in the reply's payload, after the IP and ICMP headers."""
        start = (packet[0] & 15) * 4
        return _marked(packet[start + 8 :], self._mark)


def _marked(payload: bytes, mark: bytes) -> int | None:
    if len(payload) != PAYLOAD.size:
        return None
    found, number = PAYLOAD.unpack(payload)
    return int(number) if found == mark else None


def _checksum(packet: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


class Track:
    """One kind's requests and answers so far."""

    def __init__(self, echo: UdpEcho | IcmpEcho) -> None:
        self.echo = echo
        self.sent = array("q")
        self.answered = array("q")
        self.open = 0
        self.refused = 0
        echo.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Room for all answers that a resumed guest may send at once.
        echo.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        echo.socket.setblocking(False)

    def send(self) -> None:
        """Send the next request. A packet that the kernel refuses counts as sent, and lost."""
        number = len(self.sent)
        packet = self.echo.request(number)
        self.sent.append(time.monotonic_ns())
        self.answered.append(0)
        self.open += 1
        try:
            self.echo.socket.send(packet)
        except OSError:
            # A pending error (port or host unreachable), a full queue: a client would have lost this one too.
            self.refused += 1

    def receive(self) -> None:
        """Take all answers that have arrived."""
        while True:
            try:
                packet, ancillary, _, _ = self.echo.socket.recvmsg(2048, _CMSG)
            except BlockingIOError:
                return
            except OSError:
                self.refused += 1
                continue
            number = self.echo.number(packet)
            if number is None or number >= len(self.sent) or self.answered[number]:
                continue
            self.answered[number] = _arrival(ancillary)
            self.open -= 1


def _arrival(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's receive time, brought from the wall clock to the monotonic one by their difference now."""
    now, wall = time.monotonic_ns(), time.time_ns()
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, rest = struct.unpack("qq", data)
            age: int = wall - (seconds * 1_000_000_000 + rest)
            return now - max(age, 0)
    return now


class Beat:
    """The loop."""

    def __init__(self, tracks: list[Track], interval: int, out: str) -> None:
        self._tracks = tracks
        self._interval = interval
        self._out = out
        self.late = array("q")
        self.stopping = False

    def stop(self, *_: object) -> None:
        """Send no more; a signal handler."""
        self.stopping = True

    def run(self, duration: int) -> None:
        """Send for `duration` ns (0: until `stop`), then wait for the last answers."""
        start = time.monotonic_ns()
        deadline = start
        silent = True
        while not self.stopping and (not duration or deadline - start < duration):
            self._receive_until(deadline)
            self.late.append(max(time.monotonic_ns() - deadline, 0))
            for track in self._tracks:
                track.send()
            deadline += self._interval
            if silent and all(track.open < len(track.sent) for track in self._tracks):
                silent = False
                os.close(os.open(self._out + ".answered", os.O_CREAT | os.O_WRONLY, 0o600))
        end = time.monotonic_ns() + LINGER_NS
        while time.monotonic_ns() < end and any(track.open for track in self._tracks):
            self._receive_until(time.monotonic_ns() + self._interval)

    def _receive_until(self, deadline: int) -> None:
        sockets = {track.echo.socket: track for track in self._tracks}
        while True:
            left = deadline - time.monotonic_ns()
            ready, _, _ = select.select(list(sockets), [], [], max(left, 0) / 1e9)
            for found in ready:
                sockets[found].receive()
            if left <= 0:
                return


def settle() -> str:
    """Become as punctual as this machine lets us; return what was had: `fifo`, `nice` or `normal`."""
    gc.disable()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    libc.mlockall(MCL_CURRENT_AND_FUTURE)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
        return "fifo"
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return "nice"
    return "normal"


def write(out: str, header: dict[str, object], arrays: list[array[int]]) -> None:
    """Write the file, whole or not at all."""
    with open(out + ".new", "wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for values in arrays:
            values.tofile(file)
    os.replace(out + ".new", out)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--interval-ns", type=int, required=True)
    parser.add_argument("--for-ns", type=int, default=0)
    parser.add_argument("--kinds", default="icmp,udp")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    mark = os.urandom(8)
    made: dict[str, type[IcmpEcho] | type[UdpEcho]] = {"icmp": IcmpEcho, "udp": UdpEcho}
    kinds = options.kinds.split(",")
    tracks = [Track(made[kind](options.address, mark)) for kind in kinds]
    beat = Beat(tracks, options.interval_ns, options.out)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, beat.stop)
    scheduling = settle()
    started = time.time()
    beat.run(options.for_ns)
    header: dict[str, object] = {
        "address": options.address,
        "interval_ns": options.interval_ns,
        "scheduling": scheduling,
        "started": started,
        "kinds": kinds,
        "beats": len(beat.late),
        "refused": [track.refused for track in tracks],
    }
    write(options.out, header, [beat.late, *(values for track in tracks for values in (track.sent, track.answered))])


if __name__ == "__main__":
    main()
