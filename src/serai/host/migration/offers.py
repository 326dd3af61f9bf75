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

    def ports(self, vm: str) -> set[int]:
        """Where this host has listened for moves of the VM: an old offer's source may still call there."""
        return {row.port for row in self._store.leases(vm) if row.port is not None}

    def decide(self, ask: VerdictAsk, reason: str) -> Verdict:
        """The verdict by the journal; an offer that it does not say committed is turned down, durably."""
        rows = {row.epoch: row for row in self._store.leases(ask.vm)}
        known = rows.get(ask.epoch)
        later = [row for row in rows.values() if row.epoch > ask.epoch]
        if any(row.claim in rules.RUNS for row in later):
            return Verdict(claim=Claim.COMMITTED)  # decided long ago: a source that asks only now must not run
        if known is None and later:
            return Verdict(claim=Claim.COMMITTED)  # so long ago that its claim is pruned
        if known is not None and (known.claim in rules.RUNS or (known.claim is Claim.RELEASED and known.offer_id)):
            return Verdict(claim=Claim.COMMITTED)  # released: it was committed here, and has moved on since
        if known is not None and known.claim is not Claim.OFFERED:
            # Turned down, or given up before this host had heard of the offer.
            return Verdict(claim=Claim.ABANDONED, reason=known.reason or reason)
        row = known or LeaseRecord(vm=ask.vm, epoch=ask.epoch, claim=Claim.ABANDONED, offer_id=ask.offer_id)
        self._store.put_claim(row.model_copy(update={"claim": Claim.ABANDONED, "reason": reason}))
        return Verdict(claim=Claim.ABANDONED, reason=reason)

    def promised(self, body: WithdrawMigration) -> bool | None:
        """Whether the source has promised that the last state is never sent; none: it has not, and may."""
        if self._store.claim(body.vm, body.epoch) is Claim.ABANDONED:
            return True
        runs = self._store.may_run(body.vm)
        # A VM that was given up may have gone with this offer.
        return None if runs is not None and runs < body.epoch else False
