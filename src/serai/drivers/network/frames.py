"""Announcement frames, as bytes: pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Interface

BROADCAST = b"\xff" * 6
ETH_ARP = 0x0806
ETH_RARP = 0x8035


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _arp(ethertype: int, mac: bytes, operation: int, sender_ip: bytes, target_mac: bytes, target_ip: bytes) -> bytes:
    header = BROADCAST + mac + struct.pack("!H", ethertype)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + sender_ip + target_mac + target_ip
    return (header + body).ljust(60, b"\0")


def announcement(mac: str, ips: list[IPv4Interface]) -> list[bytes]:
    """Frames that tell where a MAC and its addresses are.

    RARP (as QEMU's own announcements, 0x8035) moves every forwarding table on the way; a gratuitous ARP request and
    reply for each address (RFC 5227, both, since neighbours differ in which they believe) refresh the neighbours.
    """
    source = mac_bytes(mac)
    zero = b"\0" * 4
    frames = [_arp(ETH_RARP, source, 3, zero, source, zero)]
    for interface in ips:
        ip = interface.ip.packed
        frames.append(_arp(ETH_ARP, source, 1, ip, b"\0" * 6, ip))
        frames.append(_arp(ETH_ARP, source, 2, ip, BROADCAST, ip))
    return frames
