"""Announcement frames, byte by byte."""

from ipaddress import IPv4Interface

from serai.drivers.network.frames import announcement

MAC = "52:54:00:00:00:01"
SOURCE = "525400000001"


def test_a_vnic_without_addresses_is_announced_by_rarp() -> None:
    (rarp,) = announcement(MAC, [])
    assert len(rarp) == 60
    head = "ffffffffffff" + SOURCE + "8035" + "0001080006040003"
    assert rarp.hex() == (head + SOURCE + "00000000" + SOURCE + "00000000").ljust(120, "0")


def test_each_address_is_announced_by_a_request_and_a_reply() -> None:
    frames = announcement(MAC, [IPv4Interface("10.9.0.100/24"), IPv4Interface("10.9.0.101/24")])
    assert len(frames) == 5
    request, reply = (frame.hex().rstrip("0") for frame in frames[1:3])
    head = "ffffffffffff" + SOURCE + "0806" + "000108000604"
    assert request == head + "0001" + SOURCE + "0a090064" + "000000000000" + "0a090064"
    assert reply == head + "0002" + SOURCE + "0a090064" + "ffffffffffff" + "0a090064"
    assert all(len(frame) == 60 for frame in frames)
