"""Networks. They are only written down here: who runs the hosts makes their bridges, and placement goes by them."""

from __future__ import annotations

from serai.controller.services.create import add
from serai.controller.services.requester import Action, Requester
from serai.controller.store import Transaction
from serai.core import ipam
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import NetworkId
from serai.schema.network import Network, NetworkCreate, NetworkSpec, NetworkStatus


async def create(tx: Transaction, _: Requester, body: NetworkCreate) -> Network:
    """Write it down."""
    total = ipam.total(body.spec)
    if total < 1:
        raise InvalidError(
            "the range leaves no address for a VM",
            field="spec.range_start",
            value=body.spec.range_start or body.spec.subnet,
            remedy="Choose a larger range or subnet.",
        )
    for other in await tx.networks.on_bridge(body.spec.bridge):
        if other.name != body.name:
            ipam.check_apart(body.spec, other, field="spec.range_start")
    spec, status = NetworkSpec.model_validate(dict(body.spec)), NetworkStatus(addresses_total=total)
    return await add(tx, tx.networks, new_id(NetworkId), body, spec, status, str(body.spec.subnet))


async def delete(tx: Transaction, _: Requester, network: Network) -> None:
    """Forget one that no VNIC is on."""
    used = (await tx.networks.counts()).get(network.id, 0)
    if used:
        raise ConflictError(
            f"network {network.name} has {used} VNICs",
            field="network",
            value=network.name,
            remedy="Take them from their VMs first: serai vm edit --remove-network.",
        )
    await tx.networks.delete(network.id)
    await tx.emit("network.deleted", f"network/{network.name}", network.id)


ACTIONS: dict[str, Action] = {"network.create": create, "network.delete": delete}
