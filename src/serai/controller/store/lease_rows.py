"""How leases are written. Only `services/rights.py` may import this; the rules are those of core/grants.py."""

from __future__ import annotations

from sqlalchemy import delete, insert, update

from serai.controller.store import tables
from serai.controller.store.store import Transaction
from serai.schema.errors import StaleError
from serai.schema.ids import VmId
from serai.schema.lease import Lease

leases = tables.leases


class LeaseRows:
    """Writes within one transaction. Each change moves the store's position."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    async def insert(self, lease: Lease) -> Lease:
        """The first lease of a VM."""
        await self._tx.connection.execute(insert(leases).values(**self._values(lease)))
        await self._tx.lineage.advance()
        return lease.model_copy(update={"updated": self._tx.now})

    async def replace(self, before: Lease, after: Lease) -> Lease:
        """Write `after` in place of `before`. Raises StaleError if the row is not `before` any more."""
        if after == before:
            return before
        query = (
            update(leases)
            .where(
                leases.c.vm == before.vm,
                leases.c.epoch == before.epoch,
                leases.c.highest == before.highest,
                leases.c.offer_id.is_not_distinct_from(before.offer_id),
            )
            .values(**self._values(after))
        )
        if (await self._tx.connection.execute(query)).rowcount != 1:
            raise StaleError(f"the lease of VM {before.vm} changed meanwhile", remedy="Read it again.")
        await self._tx.lineage.advance()
        return after.model_copy(update={"updated": self._tx.now})

    async def drop(self, vm: VmId) -> None:
        """Forget the lease of a VM that is deleted."""
        await self._tx.connection.execute(delete(leases).where(leases.c.vm == vm))
        await self._tx.lineage.advance()

    def _values(self, lease: Lease) -> dict[str, object]:
        return {**lease.model_dump(mode="json", exclude={"updated"}), "updated": self._tx.now.isoformat()}
