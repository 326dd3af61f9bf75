"""In whose name a service acts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from serai.controller.jobs.engine import Engine
from serai.controller.jobs.workflow import ParamsT, Workflow
from serai.controller.jobs.writer import StateT
from serai.controller.services.rights import Rights
from serai.controller.store import Transaction
from serai.schema.job import Job
from serai.schema.resource import Resource


@dataclass(frozen=True)
class Requester:
    """Who asks, and why in his own words: jobs and events tell it. `engine` takes his jobs."""

    engine: Engine
    rights: Rights
    name: str
    reason: str = ""

    async def submit(
        self,
        tx: Transaction,
        workflow: Workflow[ParamsT, StateT],
        item: Resource[Any, Any],
        params: ParamsT,
        state: StateT | None = None,
    ) -> Job:
        """The job that was asked for, on a resource, as part of `tx`; see `Engine.submit`."""
        target = f"{item.kind}/{item.name}"
        return await self.engine.submit(
            tx, workflow, target, item.id, params, state, requested_by=self.name, reason=self.reason
        )


Action = Callable[..., Awaitable[Any]]
"""What an endpoint asks for. It takes a transaction, a requester, the resource of the path, the body, and the query.

It returns the job, or the resource that it changed, or nothing. Tests compare signatures with schema/endpoints.py.
"""
