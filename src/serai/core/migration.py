"""The two ends of a live migration as tables: what each event means in each phase, and what is then to be done.

Why the commit is safe with nothing but local work in the blackout:

- The destination loads the state, and only its own journal's `committed`, with fsync, stands before its `cont`.
- The source never resumes on its own once the last state may have been delivered. With the return path off and nothing
  in the stream after its end mark (`suppress-vmdesc`), QEMU fails on the source only if its last write failed, and then
  the destination has not loaded. So `failed` before `sent` means: not committed, and the source goes on.
- After `sent` the source stays paused until the destination's journal has been read: `committed` or `abandoned`.
- `migrate_cancel` is asked for only before `migrate-continue`: after that the outcome is the switch's own. (A QEMU that
  is cancelled while it writes its last bytes goes on, whatever has arrived.)
"""

from __future__ import annotations

from enum import StrEnum

from serai.schema.errors import ConflictError
from serai.schema.host import HostFacts
from serai.schema.vm import Vm

PENDING = "pending-restart"
"""Condition of a VM whose spec asks for what only a restart brings."""


class SourcePhase(StrEnum):
    SETUP = "setup"
    PRECOPY = "precopy"
    CANCELLING = "cancelling"
    SWITCH = "switch"
    SENT = "sent"
    DONE = "done"
    STAYED = "stayed"

    @property
    def ended(self) -> bool:
        return self in (SourcePhase.DONE, SourcePhase.STAYED)


class SourceEvent(StrEnum):
    """QMP's MIGRATION statuses as they come, requests, and the destination's verdict."""

    QEMU_SETUP = "setup"
    QEMU_ACTIVE = "active"
    QEMU_PRE_SWITCHOVER = "pre-switchover"
    QEMU_DEVICE = "device"
    QEMU_CANCELLING = "cancelling"
    QEMU_COMPLETED = "completed"
    QEMU_FAILED = "failed"
    QEMU_CANCELLED = "cancelled"
    CANCEL = "cancel"
    QEMU_ENDED = "qemu-ended"
    COMMITTED = "verdict-committed"
    ABANDONED = "verdict-abandoned"


class Act(StrEnum):
    """What the source's agent does, in the order of the table's tuple.

    Two things follow from the end itself, not from a step: with STAYED the controller has the destination turn the
    offer down; with DONE the VM's agent ends QEMU and gives the old epoch up.
    """

    CLOSE_PORT = "close the VNICs' ports"
    CONTINUE = "migrate-continue"
    CANCEL = "migrate_cancel"
    ASK_VERDICT = "ask the destination's journal"
    OPEN_PORT = "open the VNICs' ports"
    CONT = "cont"


P = SourcePhase
V = SourceEvent
A = Act

SOURCE: dict[tuple[SourcePhase, SourceEvent], tuple[SourcePhase, tuple[Act, ...]]] = {
    (P.SETUP, V.QEMU_SETUP): (P.SETUP, ()),
    (P.SETUP, V.QEMU_ACTIVE): (P.PRECOPY, ()),
    (P.SETUP, V.CANCEL): (P.CANCELLING, (A.CANCEL,)),
    (P.PRECOPY, V.QEMU_ACTIVE): (P.PRECOPY, ()),
    (P.PRECOPY, V.CANCEL): (P.CANCELLING, (A.CANCEL,)),
    # The blackout begins here: the VM is stopped. Its frames must not queue here while it wakes up over there.
    (P.SETUP, V.QEMU_PRE_SWITCHOVER): (P.SWITCH, (A.CONTINUE, A.CLOSE_PORT)),
    (P.PRECOPY, V.QEMU_PRE_SWITCHOVER): (P.SWITCH, (A.CONTINUE, A.CLOSE_PORT)),
    (P.CANCELLING, V.QEMU_PRE_SWITCHOVER): (P.CANCELLING, ()),
    (P.CANCELLING, V.QEMU_ACTIVE): (P.CANCELLING, ()),
    (P.CANCELLING, V.QEMU_SETUP): (P.CANCELLING, ()),
    (P.CANCELLING, V.QEMU_CANCELLING): (P.CANCELLING, ()),
    (P.CANCELLING, V.CANCEL): (P.CANCELLING, ()),
    (P.CANCELLING, V.QEMU_CANCELLED): (P.STAYED, (A.OPEN_PORT,)),
    (P.CANCELLING, V.QEMU_FAILED): (P.STAYED, (A.OPEN_PORT,)),
    # The cancel came after all had been sent: the journal over there decides.
    (P.CANCELLING, V.QEMU_COMPLETED): (P.SENT, (A.ASK_VERDICT,)),
    (P.SWITCH, V.QEMU_DEVICE): (P.SWITCH, ()),
    (P.SWITCH, V.QEMU_ACTIVE): (P.SWITCH, ()),
    (P.SWITCH, V.QEMU_COMPLETED): (P.SENT, (A.ASK_VERDICT,)),
    **{
        (phase, end): (P.STAYED, (A.OPEN_PORT,))
        for phase in (P.SETUP, P.PRECOPY, P.SWITCH)
        for end in (V.QEMU_FAILED, V.QEMU_CANCELLED)
    },
    **{(phase, V.QEMU_CANCELLING): (phase, ()) for phase in (P.SETUP, P.PRECOPY, P.SWITCH)},
    (P.SENT, V.QEMU_COMPLETED): (P.SENT, ()),
    (P.SENT, V.COMMITTED): (P.DONE, ()),
    (P.SENT, V.ABANDONED): (P.STAYED, (A.OPEN_PORT, A.CONT)),
    # QEMU itself is gone: before `sent` the VM crashed here; after, the destination may hold it.
    **{(phase, V.QEMU_ENDED): (P.STAYED, ()) for phase in (P.SETUP, P.PRECOPY, P.CANCELLING)},
    (P.SWITCH, V.QEMU_ENDED): (P.SENT, (A.ASK_VERDICT,)),
    (P.SENT, V.QEMU_ENDED): (P.SENT, ()),
}


def source_step(phase: SourcePhase, event: SourceEvent) -> tuple[SourcePhase, tuple[Act, ...]]:
    """The next phase and what to do, in order. Raises ConflictError for a step that cannot be (a cancel too late)."""
    try:
        return SOURCE[phase, event]
    except KeyError:
        raise ConflictError(
            f"a migration in phase {phase} cannot take {event}",
            field="phase",
            value=phase,
            remedy="The switch has begun: its own outcome stands; wait for the job to end.",
        ) from None


RESUMED: dict[str, tuple[SourcePhase, SourceEvent]] = {
    "setup": (P.SETUP, V.CANCEL),
    "active": (P.PRECOPY, V.CANCEL),
    # Perhaps the agent before it has said `migrate-continue` already: it is too late to cancel.
    "pre-switchover": (P.PRECOPY, V.QEMU_PRE_SWITCHOVER),
    "cancelling": (P.CANCELLING, V.QEMU_CANCELLING),
    "device": (P.SWITCH, V.QEMU_DEVICE),
    "completed": (P.SWITCH, V.QEMU_COMPLETED),
}
"""By QEMU's status: where a restarted agent finds itself, and the event that it begins with. What nobody watched is
cancelled while that is still possible."""


def resume_at(status: str, *, running: bool) -> tuple[SourcePhase, SourceEvent]:
    """Where a restarted agent takes its move up, by QEMU's migration status and whether its vCPUs run.

    `completed` of a VM that runs is the status of the migration that brought it here, or the verdict was `abandoned`
    and it goes on: a source whose last state was sent stands still until then.
    """
    if status == "completed" and running:
        return P.SETUP, V.QEMU_FAILED
    return RESUMED.get(status, (P.SETUP, V.QEMU_FAILED))


class DestinationPhase(StrEnum):
    PREPARED = "prepared"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class DestinationEvent(StrEnum):
    LOADED = "loaded"
    """QMP's MIGRATION `completed` on the destination: all state is here."""
    TURN_DOWN = "turn-down"
    QEMU_FAILED = "failed"
    QEMU_ENDED = "qemu-ended"


D = DestinationPhase
W = DestinationEvent

DESTINATION: dict[tuple[DestinationPhase, DestinationEvent], DestinationPhase] = {
    (D.PREPARED, W.LOADED): D.COMMITTED,
    (D.PREPARED, W.TURN_DOWN): D.ABANDONED,
    (D.PREPARED, W.QEMU_FAILED): D.ABANDONED,
    (D.PREPARED, W.QEMU_ENDED): D.ABANDONED,
    # Final: what the journal says is never taken back.
    **{(D.COMMITTED, event): D.COMMITTED for event in W},
    **{(D.ABANDONED, event): D.ABANDONED for event in W},
}

NEEDED = ("events", "pause-before-switchover")
"""Without these nothing moves."""
CAPABILITIES: dict[str, bool] = {
    "events": True,
    "pause-before-switchover": True,
    "return-path": False,
    "auto-converge": False,
    "multifd": False,
    "validate-uuid": True,
}
"""What both ends set, where QEMU has it. `return-path` off is part of the argument in this module's docstring;
with `validate-uuid` a QEMU takes no other VM's state."""


def agreed_capabilities(source: HostFacts, destination: HostFacts) -> dict[str, bool]:
    """CAPABILITIES as far as both QEMUs know them. Raises ConflictError if one lacks what the protocol stands on.

    `suppress-vmdesc` is an option of the machine, not a capability; the commit point rests on it all the same.
    """
    for end, facts in (("source", source), ("destination", destination)):
        lacks = [name for name in NEEDED if name not in facts.migration_capabilities]
        lacks += [] if facts.suppress_vmdesc else ["suppress-vmdesc"]
        if lacks:
            raise ConflictError(
                f"the {end}'s QEMU {facts.qemu_version} has no {' and no '.join(lacks)}, on which a safe move rests",
                field="to",
                remedy="Install QEMU 7.2 or newer there, and start its agent again.",
            )
    both = set(source.migration_capabilities) & set(destination.migration_capabilities)
    return {name: wanted for name, wanted in CAPABILITIES.items() if name in both}


def check_nothing_pending(vm: Vm) -> None:
    """Raise ConflictError for a VM that waits for a restart: a destination is started from its spec, and QEMU takes the
    state only if that is what the source runs with.

    One whose QEMU was started with the newest spec waits no more: its host restarted it, and the remark is a past one.
    """
    waiting = [one for one in vm.status.conditions if one.type == PENDING]
    if not waiting or vm.status.running_generation >= vm.generation:
        return
    options = " ".join(one.undo for one in waiting) if all(one.undo for one in waiting) else ""
    back = f"take the changes back (serai vm edit {vm.name} {options})" if options else "take the changes back"
    raise ConflictError(
        f"VM {vm.name} does not run with what it is to have after a restart: "
        f"{'; '.join(one.message for one in waiting)}",
        field="state",
        value=PENDING,
        remedy=f"Restart it (serai vm restart {vm.name}), or {back}; then it moves.",
    )
