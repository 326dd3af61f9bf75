"""What the random fault test does, as a sequence that follows from a seed alone: nothing here looks at a lab.

The sequence is drawn from a small model of what the actions before should have led to, so that most of them make sense:
a VM that was stopped is started more often than it is paused, and what was killed is brought back before too much is
gone. The model may be wrong, since faults have their way; an action that does not apply is then refused, and that is
tried as well.

Actions come in rounds of ROUND. Each round ends with `settle`: all is repaired, and looked at.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

ROUND = 20
"""Actions between two settlings: half a minute, which is what a failure has to be searched in."""
AT_ONCE = 3
"""Faults at most that are not made good yet."""
LONGEST = 1.6
"""Seconds at most between two actions: a move of a small VM takes as long."""


class Verb(StrEnum):
    # Asked of the controller.
    MIGRATE = "migrate"
    START = "start"
    STOP = "stop"
    STOP_BY_FORCE = "stop by force"
    RESTART = "restart"
    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"
    EDIT = "edit"
    CANCEL = "cancel the newest job of"
    # Done to a program of the lab.
    KILL = "kill"
    START_AGAIN = "start again"
    FREEZE = "freeze"
    THAW = "thaw"
    # Done to the QEMUs of a VM: with `how` the oldest or the newest of them, so the source or the destination.
    KILL_QEMU = "kill QEMU of"
    FREEZE_QEMU = "freeze QEMU of"
    THAW_QEMU = "thaw QEMUs of"
    SETTLE = "settle"


REQUESTS = (
    Verb.MIGRATE, Verb.START, Verb.STOP, Verb.STOP_BY_FORCE, Verb.RESTART, Verb.RESET, Verb.PAUSE, Verb.RESUME,
    Verb.EDIT, Verb.CANCEL,
)  # fmt: skip
FAULTS = (Verb.KILL, Verb.FREEZE, Verb.KILL_QEMU, Verb.FREEZE_QEMU)
REPAIRS = (Verb.START_AGAIN, Verb.THAW, Verb.THAW_QEMU)


@dataclass(frozen=True)
class Action:
    """`target`: a VM (`vm0`), or a program (`agent h1`). `how`: a host, a value, or which QEMU."""

    verb: Verb
    target: str = ""
    how: str = ""
    pause: float = 0.0
    """Seconds until the next action."""

    def __str__(self) -> str:
        return " ".join(word for word in (self.verb.value, self.target, self.how) if word)


@dataclass
class Model:
    """What the actions so far should have led to."""

    vms: Sequence[str]
    hosts: Sequence[str]
    up: dict[str, str] = field(default_factory=dict)
    """VM to `running`, `paused` or `stopped`."""
    dead: set[str] = field(default_factory=set)
    frozen: set[str] = field(default_factory=set)
    frozen_qemus: set[str] = field(default_factory=set)
    round: list[Action] = field(default_factory=list)
    """Actions since the last settling."""

    @property
    def programs(self) -> list[str]:
        return [*(f"agent {host}" for host in self.hosts), "controller ctl", "nats-server ctl"]

    @property
    def healthy(self) -> list[str]:
        return [name for name in self.programs if name not in self.dead | self.frozen]

    @property
    def faults(self) -> int:
        return len(self.dead) + len(self.frozen) + len(self.frozen_qemus)

    def take(self, action: Action) -> None:
        self.round.append(action)
        target = action.target
        match action.verb:
            case Verb.KILL:
                self.dead.add(target)
            case Verb.START_AGAIN:
                self.dead.discard(target)
            case Verb.FREEZE:
                self.frozen.add(target)
            case Verb.THAW:
                self.frozen.discard(target)
            case Verb.FREEZE_QEMU:
                self.frozen_qemus.add(target)
            case Verb.THAW_QEMU:
                self.frozen_qemus.discard(target)
            case Verb.STOP | Verb.STOP_BY_FORCE:
                self.up[target] = "stopped"
            case Verb.START | Verb.RESTART | Verb.RESUME | Verb.RESET:
                self.up[target] = "running"
            case Verb.PAUSE:
                self.up[target] = "paused"
            case Verb.SETTLE:
                self.up = dict.fromkeys(self.vms, "running")
                self.dead, self.frozen, self.frozen_qemus, self.round = set(), set(), set(), []
            case _:
                pass


@dataclass(frozen=True)
class Exclusion:
    """A known defect that the test keeps away from until it is mended: which actions may not follow on which."""

    defect: str
    forbids: Callable[[Model, Action], bool]


def _agent_and_qemu_die(model: Model, action: Action) -> bool:
    agents = any(done.verb is Verb.KILL and done.target.startswith("agent") for done in model.round)
    qemus = any(done.verb is Verb.KILL_QEMU for done in model.round)
    if action.verb is Verb.KILL and action.target.startswith("agent"):
        return qemus
    return action.verb is Verb.KILL_QEMU and agents


KNOWN: tuple[Exclusion, ...] = (
    Exclusion(
        "A destination whose agent and QEMU both die in pre-copy leaves the move's job undoing for ever, and a source "
        "that dies so after the commit leaves it settling. What waits for that job, `vm stop --force` too, waits on.",
        _agent_and_qemu_die,
    ),
    Exclusion("A cancel may be lost, and the job goes on.", lambda _, action: action.verb is Verb.CANCEL),
)
"""To be removed one by one as the defects are."""

ASKED = {
    "running": {Verb.MIGRATE: 10, Verb.PAUSE: 1, Verb.STOP: 1, Verb.STOP_BY_FORCE: 1, Verb.RESTART: 1, Verb.RESET: 1,
                Verb.EDIT: 2, Verb.CANCEL: 2, Verb.START: 0.2, Verb.RESUME: 0.2},
    "paused": {Verb.RESUME: 6, Verb.STOP: 1, Verb.STOP_BY_FORCE: 1, Verb.MIGRATE: 0.5, Verb.EDIT: 1, Verb.RESET: 0.5},
    "stopped": {Verb.START: 8, Verb.MIGRATE: 0.5, Verb.EDIT: 1, Verb.PAUSE: 0.2, Verb.CANCEL: 1},
}  # fmt: skip
"""How often what is asked of a VM, by what it should be."""


def actions(
    seed: int,
    vms: Sequence[str] = ("vm0", "vm1", "vm2"),
    hosts: Sequence[str] = ("h1", "h2", "h3"),
    avoid: Sequence[Exclusion] = KNOWN,
) -> Iterator[Action]:
    """The endless sequence of a seed."""
    draw = random.Random(seed)
    model = Model(vms, hosts, dict.fromkeys(vms, "running"))
    while True:
        while len(model.round) < ROUND:
            action = _next(draw, model)
            if not any(one.forbids(model, action) for one in avoid):
                model.take(action)
                yield action
        model.take(Action(Verb.SETTLE))
        yield Action(Verb.SETTLE)


def _next(draw: random.Random, model: Model) -> Action:
    pause = round(draw.uniform(0.0, LONGEST), 2)
    last = model.round[-1].verb if model.round else None
    # Faults belong into moves most of all.
    fault = 0.6 if last is Verb.MIGRATE else 0.2
    chance = draw.random()
    # While nobody answers, requests try nothing.
    deaf = {"controller ctl", "nats-server ctl"} & (model.dead | model.frozen)
    if model.faults and chance < 0.15 * model.faults + 0.2 * len(deaf):
        return _repair(draw, model, pause)
    if model.faults < AT_ONCE and draw.random() < fault:
        return _fault(draw, model, pause)
    return _request(draw, model, pause)


def _repair(draw: random.Random, model: Model, pause: float) -> Action:
    repairs = [
        *(Action(Verb.START_AGAIN, name, pause=pause) for name in sorted(model.dead)),
        *(Action(Verb.THAW, name, pause=pause) for name in sorted(model.frozen)),
        *(Action(Verb.THAW_QEMU, name, pause=pause) for name in sorted(model.frozen_qemus)),
    ]
    return draw.choice(repairs)


def _fault(draw: random.Random, model: Model, pause: float) -> Action:
    verb = draw.choices(FAULTS, weights=(4, 2, 3, 2))[0]
    if verb in (Verb.KILL, Verb.FREEZE):
        return Action(verb, draw.choice(model.healthy), pause=pause)
    moving = [done.target for done in model.round if done.verb is Verb.MIGRATE][-1:]
    target = moving[0] if moving and draw.random() < 0.7 else draw.choice(list(model.vms))
    return Action(verb, target, draw.choice(("oldest", "newest")), pause)


def _request(draw: random.Random, model: Model, pause: float) -> Action:
    vm = draw.choice(list(model.vms))
    weights = ASKED[model.up[vm]]
    verb = draw.choices(list(weights), weights=list(weights.values()))[0]
    how = ""
    if verb is Verb.MIGRATE:
        how = draw.choice(list(model.hosts))
    elif verb is Verb.EDIT:
        how = draw.choice(("cpus=1", "cpus=2", f"description={draw.randrange(1000)}", "disk", "no disk"))
    return Action(verb, vm, how, pause)
