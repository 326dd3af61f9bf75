"""The random fault test's sequences: repeatable, varied, and away from what is known."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from tests.support.faults.actions import (
    AT_ONCE,
    FAULTS,
    KNOWN,
    ROUND,
    Action,
    Exclusion,
    Model,
    Verb,
    actions,
)

VMS = ("vm0", "vm1")
HOSTS = ("h1", "h2", "h3")


def first(count: int, seed: int = 1, avoid: tuple[Exclusion, ...] = KNOWN) -> list[Action]:
    return list(islice(actions(seed, VMS, HOSTS, avoid), count))


def test_a_seed_is_a_sequence() -> None:
    assert first(200, seed=5) == first(200, seed=5)
    assert first(20, seed=5) != first(20, seed=6)
    assert first(300, seed=5)[:200] == first(200, seed=5)


def test_every_verb_comes() -> None:
    assert {action.verb for action in first(2000, avoid=())} == set(Verb)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_killed_is_alive_and_what_is_brought_back_is_not(seed: int) -> None:
    model = Model(VMS, HOSTS, dict.fromkeys(VMS, "running"))
    for action in first(500, seed):
        match action.verb:
            case Verb.KILL | Verb.FREEZE:
                assert action.target in model.healthy
            case Verb.START_AGAIN:
                assert action.target in model.dead
            case Verb.THAW:
                assert action.target in model.frozen
            case Verb.THAW_QEMU:
                assert action.target in model.frozen_qemus
            case _:
                pass
        model.take(action)
        assert model.faults <= AT_ONCE


def test_rounds_end_with_a_settling() -> None:
    found = [place for place, action in enumerate(first(10 * (ROUND + 1))) if action.verb is Verb.SETTLE]
    assert found == [ROUND + number * (ROUND + 1) for number in range(10)]


def test_faults_are_many_and_most_of_all_in_moves() -> None:
    found = first(4000, avoid=())
    after_move = [after.verb in FAULTS for before, after in pairwise(found) if before.verb is Verb.MIGRATE]
    others = [after.verb in FAULTS for before, after in pairwise(found) if before.verb is Verb.PAUSE]
    assert sum(after_move) / len(after_move) > 1.5 * sum(others) / len(others)


@pytest.mark.parametrize("exclusion", KNOWN, ids=lambda one: one.defect[:30])
def test_what_is_excluded_never_comes_and_would(exclusion: Exclusion) -> None:
    def broken(avoid: tuple[Exclusion, ...]) -> bool:
        model, found = Model(VMS, HOSTS, dict.fromkeys(VMS, "running")), False
        for action in first(3000, avoid=avoid):
            found |= exclusion.forbids(model, action)
            model.take(action)
        return found

    assert not broken(KNOWN)
    assert broken(())


def test_an_action_in_words() -> None:
    assert str(Action(Verb.MIGRATE, "vm0", "h2", 0.5)) == "migrate vm0 h2"
    assert str(Action(Verb.SETTLE)) == "settle"
