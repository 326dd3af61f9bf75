"""The two ends of a move, as state machines driven by whatever may happen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.core.migration import (
    DESTINATION,
    SOURCE,
    Act,
    DestinationEvent,
    DestinationPhase,
    SourceEvent,
    SourcePhase,
    agreed_capabilities,
    source_step,
)
from serai.schema.errors import ConflictError
from serai.schema.host import HostFacts


@given(st.lists(st.sampled_from(SourceEvent), max_size=30))
@settings(max_examples=500, deadline=None)
def test_the_source_never_takes_back_what_may_have_arrived(events: list[SourceEvent]) -> None:
    phase = SourcePhase.SETUP
    continued = False
    abandoned = False
    for event in events:
        try:
            phase, acts = source_step(phase, event)
        except ConflictError:
            continue
        abandoned = abandoned or event is SourceEvent.ABANDONED
        for act in acts:
            # After migrate-continue the outcome is the switch's own: no cancel may be sent.
            assert not (continued and act is Act.CANCEL)
            continued = continued or act is Act.CONTINUE
            # After all was sent only the destination's word lets the VM run here.
            assert act is not Act.CONT or abandoned
            assert act is not Act.QUIT or event is SourceEvent.COMMITTED
        if phase.ended:
            return


def reachable(phase: SourcePhase) -> set[SourcePhase]:
    found = {phase}
    while True:
        more = {after for (before, _), (after, _) in SOURCE.items() if before in found} | found
        if more == found:
            return found
        found = more


@pytest.mark.parametrize("phase", [phase for phase in SourcePhase if not phase.ended])
def test_every_phase_can_end(phase: SourcePhase) -> None:
    assert SourcePhase.STAYED in reachable(phase)


def test_ended_is_ended() -> None:
    assert not [key for key in SOURCE if key[0].ended]


def test_a_cancel_after_the_switch_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConflictError) as caught:
        source_step(SourcePhase.SWITCH, SourceEvent.CANCEL)
    assert caught.value.info.remedy


def test_the_destination_decides_once() -> None:
    for phase in (DestinationPhase.COMMITTED, DestinationPhase.ABANDONED):
        assert {DESTINATION[phase, event] for event in DestinationEvent} == {phase}
    assert DESTINATION[DestinationPhase.PREPARED, DestinationEvent.LOADED] is DestinationPhase.COMMITTED


def facts(*capabilities: str, suppress_vmdesc: bool = True) -> HostFacts:
    return HostFacts(
        cpus=1,
        memory=1 << 30,
        accel="tcg",
        qemu_version="9.9",
        migration_capabilities=list(capabilities),
        suppress_vmdesc=suppress_vmdesc,
    )


EVERYTHING = facts("events", "pause-before-switchover", "return-path", "multifd", "auto-converge")


def test_capabilities() -> None:
    agreed = agreed_capabilities(EVERYTHING, facts("events", "pause-before-switchover", "return-path"))
    assert agreed == {"events": True, "pause-before-switchover": True, "return-path": False}


@pytest.mark.parametrize(
    ("poor", "words"),
    [
        (facts("events"), "no pause-before-switchover"),
        (facts("pause-before-switchover"), "no events"),
        (facts("events", "pause-before-switchover", suppress_vmdesc=False), "no suppress-vmdesc"),
    ],
)
def test_an_end_without_what_a_safe_move_rests_on_is_refused(poor: HostFacts, words: str) -> None:
    for source, destination, end in ((poor, EVERYTHING, "source"), (EVERYTHING, poor, "destination")):
        with pytest.raises(ConflictError, match=f"the {end}'s QEMU 9.9 has {words}") as caught:
            agreed_capabilities(source, destination)
        assert caught.value.info.remedy
