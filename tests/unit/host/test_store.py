"""What a host remembers: claims by the table, answers for repeats, and nothing that no command names any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.host.ground import VM, Ground, Host

from serai.host.journal import Journal
from serai.host.store import CLAIMS_KEPT, GONE_KEPT, HostStore
from serai.schema.commands.envelope import Reply
from serai.schema.commands.vm import VM_RELEASE, ReleaseVm
from serai.schema.errors import StaleError
from serai.schema.ids import VmId
from serai.schema.lease import Claim, LeaseRecord


def test_a_claim_takes_only_steps_of_the_table(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    store = HostStore(journal)
    store.put_claim(LeaseRecord(vm=VM, epoch=2, claim=Claim.OFFERED))
    store.put_claim(LeaseRecord(vm=VM, epoch=2, claim=Claim.ABANDONED, reason="turned down"))
    with pytest.raises(StaleError):
        store.put_claim(LeaseRecord(vm=VM, epoch=2, claim=Claim.COMMITTED))
    assert store.may_run(VM) is None
    journal.close()
    again = Journal.open(tmp_path / "journal")
    assert HostStore(again).claim(VM, 2) is Claim.ABANDONED
    again.close()


def test_answers_are_kept_for_repeats(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    store = HostStore(journal)
    store.put_answer("c" * 12, Reply(state="done", result={"n": 1}))
    store.put_generation("vm/a", 3)
    store.put_generation("vm/a", 2)
    journal.close()
    again = HostStore(reopened := Journal.open(tmp_path / "journal"))
    assert again.answer("c" * 12) == Reply(state="done", result={"n": 1})
    assert again.generation("vm/a") == 3
    reopened.close()


def test_a_hundred_visits_and_refusals_are_forgotten_in_the_end(h1: Host) -> None:
    for epoch in range(1, 101):
        h1.store.put_claim(LeaseRecord(vm=VM, epoch=epoch, claim=Claim.OFFERED))
        last = (Claim.ABANDONED,) if epoch % 2 else (Claim.COMMITTED, Claim.RELEASED)
        for claim in last:
            h1.store.put_claim(LeaseRecord(vm=VM, epoch=epoch, claim=claim))
        h1.store.prune_leases(VM)
    assert [row.epoch for row in h1.store.leases()] == list(range(101 - CLAIMS_KEPT, 101))


async def test_vms_that_are_deleted_are_forgotten_in_the_end(ground: Ground, h1: Host) -> None:
    await ground.run_vm("h1")
    over = GONE_KEPT + 5
    for number in range(over):
        vm = f"{number:012x}"
        h1.store.put_claim(LeaseRecord(vm=VmId(vm), epoch=1, claim=Claim.HELD))
        h1.store.put_generation(f"vm/{vm}", 3)
        h1.store.put_claim(LeaseRecord(vm=VmId(vm), epoch=1, claim=Claim.RELEASED))
    last = f"{over:012x}"
    h1.store.put_claim(LeaseRecord(vm=VmId(last), epoch=1, claim=Claim.OFFERED))
    await ground.ask("h1", VM_RELEASE, ReleaseVm(vm=VmId(f"{over - 1:012x}"), epoch=1))
    kept = [f"{number:012x}" for number in range(over - GONE_KEPT, over)]
    assert sorted({row.vm for row in h1.store.leases()}) == sorted([VM, last, *kept])
    assert sorted(h1.journal.all("generation")) == [f"vm/{vm}" for vm in kept]
    assert h1.store.may_run(VM) == 1
