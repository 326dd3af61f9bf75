"""Networks. They are only written down here: who runs the hosts makes their bridges, and placement goes by them."""

from __future__ import annotations

from fastapi import Response

from serai.controller import capacity
from serai.controller.api.call import Api, Call, Handler, nothing
from serai.controller.api.references import respond, respond_models
from serai.core import ipam
from serai.lib.ids import new_id
from serai.schema.errors import ConflictError, InvalidError
from serai.schema.ids import NetworkId
from serai.schema.network import Network, NetworkCreate, NetworkSpec, NetworkStatus


async def list_(api: Api, call: Call) -> Response:
    """With how many addresses are taken."""
    async with api.store.read() as view:
        found, following = await view.networks.models(call.limit, call.cursor)
        return await respond_models(view, await capacity.with_use(view, found), following)


async def show(api: Api, call: Call) -> Response:
    """One."""
    async with api.store.read() as view:
        return await respond(view, (await capacity.with_use(view, [await view.networks.find(call.name)]))[0])


async def create(api: Api, call: Call) -> Response:
    """Write it down."""
    body = call.need(NetworkCreate)
    if ipam.total(body.spec) < 1:
        raise InvalidError(
            "the range leaves no address for a VM",
            field="spec.range_start",
            value=body.spec.range_start or body.spec.subnet,
            remedy="Choose a larger range or subnet.",
        )
    async with api.store.transaction() as tx:
        for other in await tx.networks.all(tx.networks.table.c.bridge == body.spec.bridge):
            if other.name != body.name and other.spec.subnet.overlaps(body.spec.subnet):
                _refuse_overlap(other, body)
        network = Network(
            name=body.name,
            id=new_id(NetworkId),
            generation=1,
            labels=body.labels,
            description=body.description,
            created=tx.now,
            spec=NetworkSpec.model_validate(dict(body.spec)),
            status=NetworkStatus(addresses_total=ipam.total(body.spec)),
        )
        await tx.networks.insert(network)
        await tx.emit("network.created", f"network/{network.name}", network.id, str(body.spec.subnet))
        return await respond(tx, (await capacity.with_use(tx, [network]))[0], 201)


async def delete(api: Api, call: Call) -> Response:
    """Forget one that no VNIC is on."""
    async with api.store.transaction() as tx:
        network = await tx.networks.find(call.name)
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
    return nothing()


def _refuse_overlap(other: Network, body: NetworkCreate) -> None:
    # Disjoint ranges on one wire are fine; the same address given twice is not.
    mine, theirs = ipam.bounds(body.spec), ipam.bounds(other.spec)
    if mine[0] <= theirs[1] and theirs[0] <= mine[1]:
        raise ConflictError(
            f"network {other.name} gives addresses {theirs[0]} to {theirs[1]} on bridge {other.spec.bridge} already",
            field="spec.range_start",
            value=mine[0],
            remedy="Choose a range that does not overlap, or another bridge.",
        )


HANDLERS: dict[str, Handler] = {
    "network.list": list_,
    "network.show": show,
    "network.create": create,
    "network.delete": delete,
}
