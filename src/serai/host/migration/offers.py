"""What a host's journal says of offers, at either end, where no move is under way that could say it."""

from __future__ import annotations

from serai.core import lease as rules
from serai.host.store import HostStore
from serai.schema.commands.migration import PrepareMigration, Verdict, VerdictAsk, WithdrawMigration
from serai.schema.errors import InterruptedByRestartError, UnauthorizedError
from serai.schema.lease import Claim, LeaseRecord


class OfferBook:
    """The offers of one host's journal."""

    def __init__(self, host: str, store: HostStore) -> None:
        self._host = host
        self._store = store

    def check_open(self, body: PrepareMigration) -> None:
        """An offer that was turned down here is not prepared any more. Raises InterruptedByRestartError."""
        for row in self._store.leases(body.launch.vm):
            if row.epoch == body.epoch and row.claim is Claim.ABANDONED:
                raise InterruptedByRestartError(
                    f"the move was turned down: {row.reason}",
                    field="to",
                    value=self._host,
                    remedy=f"Move it again: serai vm migrate {body.launch.name} --to {self._host}.",
                )

    def check_asker(self, ask: VerdictAsk, source: str) -> None:
        """Raise UnauthorizedError if the offer is known and `source` is not its source."""
        for row in self._store.leases(ask.vm):
            if row.epoch == ask.epoch and row.offer_id == ask.offer_id and row.peer not in (None, source):
                raise UnauthorizedError(f"{source} is not the source of this move", field="source", value=source)

    def decide(self, ask: VerdictAsk, reason: str) -> Verdict:
        """The verdict by the journal; an offer that it does not say committed is turned down, durably."""
        rows = {row.epoch: row for row in self._store.leases(ask.vm)}
        claim = rows[ask.epoch].claim if ask.epoch in rows else None
        newest = max(rows, default=0)
        if claim in (Claim.COMMITTED, Claim.HELD, Claim.RELEASED) or (claim is None and newest > ask.epoch):
            # Released means that it was committed here and has moved on since. An epoch that is not known where a
            # later one is was decided so long ago that its claim is pruned; a source that asks only now must not run.
            return Verdict(claim=Claim.COMMITTED)
        if claim is Claim.ABANDONED:
            reason = rows[ask.epoch].reason or reason
        else:
            self._store.put_claim(
                LeaseRecord(vm=ask.vm, epoch=ask.epoch, claim=Claim.ABANDONED, offer_id=ask.offer_id, reason=reason)
            )
        return Verdict(claim=Claim.ABANDONED, reason=reason)

    def promised(self, body: WithdrawMigration) -> bool | None:
        """Whether the source has promised that the last state is never sent; none: it still may."""
        for row in self._store.leases(body.vm):
            if row.epoch == body.epoch and row.claim is Claim.ABANDONED:
                return True
            # A VM that was given up with an offer may have gone with it.
            if (row.epoch >= body.epoch and row.claim in rules.RUNS) or row.offer_id == body.offer_id:
                return False
        return None
