"""The two ends of a move, as state machines driven by whatever may happen."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.core.migration import (
    DESTINATION,
    PENDING,
    SOURCE,
    Act,
    DestinationEvent,
    DestinationPhase,
    SourceEvent,
    SourcePhase,
    agreed_capabilities,
    check_nothing_pending,
    resume_at,
    source_step,
)
from serai.schema.errors import ConflictError
from serai.schema.host import HostFacts
from serai.schema.ids import VmId
from serai.schema.resource import Condition
from serai.schema.vm import Vm, VmSpec, VmStatus


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
        assert phase is not SourcePhase.DONE or event is SourceEvent.COMMITTED
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


WITH_QEMU = [key for key in SOURCE if key[1] is not SourceEvent.QEMU_ENDED]


@pytest.mark.parametrize(("phase", "event"), WITH_QEMU)
def test_what_every_step_brings_along(phase: SourcePhase, event: SourceEvent) -> None:
    after, acts = SOURCE[phase, event]
    # A VM that stays has its ports open; one that is about to be sent is told to go on, and has them closed.
    assert (Act.OPEN_PORT in acts) is (after is SourcePhase.STAYED)
    switches = after is SourcePhase.SWITCH and phase is not SourcePhase.SWITCH
    assert (Act.CONTINUE in acts) is (Act.CLOSE_PORT in acts) is switches
    # The destination is asked once, when all was sent.
    assert (acts == (Act.ASK_VERDICT,)) is (after is SourcePhase.SENT and phase is not SourcePhase.SENT)
    assert (Act.CONT in acts) is (event is SourceEvent.ABANDONED)
    assert (Act.CANCEL in acts) is (event is SourceEvent.CANCEL and phase is not SourcePhase.CANCELLING)


@pytest.mark.parametrize("phase", [SourcePhase.CANCELLING, SourcePhase.SWITCH, SourcePhase.SENT])
def test_whenever_all_was_sent_the_destination_decides(phase: SourcePhase) -> None:
    assert source_step(phase, SourceEvent.QEMU_COMPLETED)[0] is SourcePhase.SENT


@pytest.mark.parametrize(
    ("status", "running", "phase", "event"),
    [
        ("none", True, SourcePhase.SETUP, SourceEvent.QEMU_FAILED),
        ("failed", True, SourcePhase.SETUP, SourceEvent.QEMU_FAILED),
        ("setup", True, SourcePhase.SETUP, SourceEvent.CANCEL),
        ("active", True, SourcePhase.PRECOPY, SourceEvent.CANCEL),
        ("pre-switchover", False, SourcePhase.PRECOPY, SourceEvent.QEMU_PRE_SWITCHOVER),
        ("cancelling", True, SourcePhase.CANCELLING, SourceEvent.QEMU_CANCELLING),
        ("device", False, SourcePhase.SWITCH, SourceEvent.QEMU_DEVICE),
        ("completed", False, SourcePhase.SWITCH, SourceEvent.QEMU_COMPLETED),
        ("completed", True, SourcePhase.SETUP, SourceEvent.QEMU_FAILED),
    ],
)
def test_where_a_restarted_agent_takes_it_up(
    status: str, running: bool, phase: SourcePhase, event: SourceEvent
) -> None:
    assert resume_at(status, running=running) == (phase, event)
    source_step(phase, event)  # it is a step of the table


COURSES: dict[str, list[tuple[SourceEvent, SourcePhase]]] = {
    "moved": [
        (SourceEvent.QEMU_SETUP, SourcePhase.SETUP),
        (SourceEvent.QEMU_ACTIVE, SourcePhase.PRECOPY),
        (SourceEvent.QEMU_ACTIVE, SourcePhase.PRECOPY),
        (SourceEvent.QEMU_PRE_SWITCHOVER, SourcePhase.SWITCH),
        (SourceEvent.QEMU_ACTIVE, SourcePhase.SWITCH),
        (SourceEvent.QEMU_DEVICE, SourcePhase.SWITCH),
        (SourceEvent.QEMU_COMPLETED, SourcePhase.SENT),
        (SourceEvent.QEMU_COMPLETED, SourcePhase.SENT),
        (SourceEvent.QEMU_ENDED, SourcePhase.SENT),
        (SourceEvent.COMMITTED, SourcePhase.DONE),
    ],
    "turned down, and its events come late": [
        (SourceEvent.QEMU_PRE_SWITCHOVER, SourcePhase.SWITCH),
        (SourceEvent.QEMU_ENDED, SourcePhase.SENT),
        (SourceEvent.ABANDONED, SourcePhase.STAYED),
    ],
    "cancelled before anything": [
        (SourceEvent.CANCEL, SourcePhase.CANCELLING),
        (SourceEvent.QEMU_SETUP, SourcePhase.CANCELLING),
        (SourceEvent.QEMU_ACTIVE, SourcePhase.CANCELLING),
        (SourceEvent.QEMU_PRE_SWITCHOVER, SourcePhase.CANCELLING),
        (SourceEvent.CANCEL, SourcePhase.CANCELLING),
        (SourceEvent.QEMU_CANCELLING, SourcePhase.CANCELLING),
        (SourceEvent.QEMU_CANCELLED, SourcePhase.STAYED),
    ],
    "cancelled in pre-copy": [
        (SourceEvent.QEMU_ACTIVE, SourcePhase.PRECOPY),
        (SourceEvent.CANCEL, SourcePhase.CANCELLING),
        (SourceEvent.QEMU_FAILED, SourcePhase.STAYED),
    ],
}


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
def test_the_course_of_a_move(course: list[tuple[SourceEvent, SourcePhase]]) -> None:
    phase = SourcePhase.SETUP
    for event, wanted in course:
        phase, _ = source_step(phase, event)
        assert phase is wanted


@pytest.mark.parametrize("phase", [SourcePhase.SETUP, SourcePhase.PRECOPY, SourcePhase.SWITCH])
def test_what_qemu_ends_by_itself_stays(phase: SourcePhase) -> None:
    """Also when somebody else cancels it."""
    assert source_step(phase, SourceEvent.QEMU_CANCELLING) == (phase, ())
    for event in (SourceEvent.QEMU_FAILED, SourceEvent.QEMU_CANCELLED):
        assert source_step(phase, event) == (SourcePhase.STAYED, (Act.OPEN_PORT,))


@pytest.mark.parametrize("phase", [phase for phase in SourcePhase if not phase.ended])
def test_a_qemu_that_ends_before_its_switch_takes_the_vm_with_it(phase: SourcePhase) -> None:
    """After it, the destination may have the VM."""
    wanted = {
        SourcePhase.SWITCH: (SourcePhase.SENT, (Act.ASK_VERDICT,)),
        SourcePhase.SENT: (SourcePhase.SENT, ()),
    }
    assert source_step(phase, SourceEvent.QEMU_ENDED) == wanted.get(phase, (SourcePhase.STAYED, ()))


def test_what_counts_only_when_it_can() -> None:
    where = {event: {phase for phase, found in SOURCE if found is event} for event in SourceEvent}
    before = {SourcePhase.SETUP, SourcePhase.PRECOPY, SourcePhase.CANCELLING}
    assert where[SourceEvent.CANCEL] == where[SourceEvent.QEMU_PRE_SWITCHOVER] == before
    assert where[SourceEvent.COMMITTED] == where[SourceEvent.ABANDONED] == {SourcePhase.SENT}
    for ends in (SourceEvent.QEMU_FAILED, SourceEvent.QEMU_CANCELLED):
        assert where[ends] == before | {SourcePhase.SWITCH}
    assert where[SourceEvent.QEMU_COMPLETED] == {SourcePhase.CANCELLING, SourcePhase.SWITCH, SourcePhase.SENT}
    assert where[SourceEvent.QEMU_DEVICE] == {SourcePhase.SWITCH}
    assert where[SourceEvent.QEMU_SETUP] == {SourcePhase.SETUP, SourcePhase.CANCELLING}


def test_ended_is_ended() -> None:
    assert not [key for key in SOURCE if key[0].ended]


def test_a_cancel_after_the_switch_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConflictError) as caught:
        source_step(SourcePhase.SWITCH, SourceEvent.CANCEL)
    assert caught.value.info.remedy


def test_the_destination_decides_once() -> None:
    for phase in (DestinationPhase.COMMITTED, DestinationPhase.ABANDONED):
        assert {DESTINATION[phase, event] for event in DestinationEvent} == {phase}
    decided = {event: DESTINATION[DestinationPhase.PREPARED, event] for event in DestinationEvent}
    assert decided.pop(DestinationEvent.LOADED) is DestinationPhase.COMMITTED
    assert set(decided.values()) == {DestinationPhase.ABANDONED}


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


def test_the_remedy_for_what_waits_is_a_command_that_works() -> None:
    memory = Condition(type=PENDING, message="memory: it cannot be changed live", undo="--memory 128M")
    cpus = Condition(type=PENDING, message="cpus: none can be taken", undo="--cpus 2")
    disks = Condition(type=PENDING, message="disks: disk 0 becomes another one")
    for conditions, words in (
        ([memory, cpus], "take the changes back (serai vm edit web1 --memory 128M --cpus 2); then"),
        ([memory, disks], "take the changes back; then"),
    ):
        vm = Vm(
            name="web1",
            id=VmId("0" * 12),
            generation=2,
            created=datetime(2026, 1, 1, tzinfo=UTC),
            spec=VmSpec(),
            status=VmStatus(conditions=conditions, running_generation=1),
        )
        with pytest.raises(ConflictError) as caught:
            check_nothing_pending(vm)
        assert words in str(caught.value.info.remedy)
