"""Networks that VNICs join: for now a Linux bridge of the same name on each host, with an address range."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from pydantic import Field, ValidationInfo, field_validator

from serai.schema.resource import Frozen, Name, Resource


class NetworkSpec(Frozen):
    """`bridge` must exist on each host that runs the network's VMs. `range` is what VNIC addresses are taken from."""

    bridge: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,15}$")
    subnet: IPv4Network
    gateway: IPv4Address | None = None
    nameservers: list[IPv4Address] = Field(default_factory=list)
    range_start: IPv4Address | None = None
    range_end: IPv4Address | None = None
    mtu: int = Field(default=1500, ge=576, le=9000)

    @field_validator("gateway", "range_start", "range_end")
    @classmethod
    def _inside(cls, address: IPv4Address | None, info: ValidationInfo) -> IPv4Address | None:
        subnet = info.data.get("subnet")  # absent if it is wrong itself
        if address is not None and subnet is not None and address not in subnet:
            raise ValueError(f"{info.field_name} {address} is not inside subnet {subnet}; give an address in {subnet}")
        first = info.data.get("range_start")
        if info.field_name == "range_end" and address is not None and first is not None and first > address:
            raise ValueError(f"range_start {first} comes after range_end {address}; give the smaller one first")
        return address


class NetworkStatus(Frozen):
    state: str = "ready"
    addresses_used: int = 0
    addresses_total: int = 0


class Network(Resource[NetworkSpec, NetworkStatus]):
    kind: str = "network"


class NetworkCreate(Frozen):
    name: Name
    spec: NetworkSpec
    labels: dict[str, str] = Field(default_factory=dict)
    description: str = ""


class UplinkTake(Frozen):
    """`serai host network take`: put `bridge` on `uplink`; undone after `confirm_within` seconds unless confirmed."""

    uplink: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,15}$")
    bridge: str = Field(default="br-lan", pattern=r"^[A-Za-z0-9_.-]{1,15}$")
    confirm_within: float = Field(default=60.0, ge=1.0, le=3600.0)


__all__ = ["IPv4Interface", "Network", "NetworkCreate", "NetworkSpec", "NetworkStatus", "UplinkTake"]
