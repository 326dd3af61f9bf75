"""Long actions: recorded steps, progress, result; and events."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from serai.schema.errors import ErrorInfo
from serai.schema.ids import JobId
from serai.schema.resource import Frozen


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    UNDOING = "undoing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class StepState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"
    SKIPPED = "skipped"


class Step(Frozen):
    name: str
    state: StepState = StepState.PENDING
    started: datetime | None = None
    ended: datetime | None = None
    detail: str = ""


class Job(Frozen):
    """`kind` names the workflow (`vm.migrate`), `target` the resource (`vm/web1`). `progress` is 0 to 1, or none."""

    id: JobId
    kind: str
    target: str
    target_id: str | None = None
    state: JobState = JobState.QUEUED
    requested_by: str
    reason: str = ""
    waits_for: str = ""
    """What it waits for, in words: another job's lock, an offline host's journal."""
    params: dict[str, Any] = Field(default_factory=dict)
    steps: list[Step] = Field(default_factory=list)
    progress: float | None = None
    message: str = ""
    result: dict[str, Any] | None = None
    error: ErrorInfo | None = None
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None


class Event(Frozen):
    """`seq` grows by commit order without gaps being meaningful: ask `?after=N` to miss none."""

    seq: int
    time: datetime
    kind: str
    """`vm.state`, `vm.created`, `job.state`, `host.state`, …"""
    resource: str
    resource_id: str = ""
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
