"""Named locks that jobs hold: the first to ask gets them all at once, and the others know what they wait for.

A job gets its locks when none of them is held, nor wanted by a job that asked before: so no job starves, and since no
job holds one while it waits for another, there is no deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Request:
    """What one job asked for. `granted` is set once it holds all of `names`."""

    owner: str
    names: frozenset[str]
    granted: asyncio.Event = field(default_factory=asyncio.Event)


class Locks:
    """The locks of one controller. They live in memory: a restarted controller requests those of its jobs again."""

    def __init__(self) -> None:
        self._held: dict[str, Request] = {}
        self._queue: list[Request] = []

    def request(self, owner: str, names: Sequence[str]) -> Request:
        """Join the queue; granted at once if nothing is in the way."""
        request = Request(owner, frozenset(names))
        self._queue.append(request)
        self._grant()
        return request

    def release(self, request: Request) -> None:
        """Give up what is held, or the place in the queue."""
        if request in self._queue:
            self._queue.remove(request)
        for name in request.names:
            if self._held.get(name) is request:
                del self._held[name]
        self._grant()

    def blockers(self, request: Request) -> dict[str, str]:
        """Lock name to the owner that holds it, or that will have it first."""
        found = {name: self._held[name].owner for name in request.names if name in self._held}
        for earlier in self._queue:
            if earlier is request:
                break
            for name in earlier.names & request.names:
                found.setdefault(name, earlier.owner)
        return {} if request.granted.is_set() else found

    def ahead(self, request: Request) -> set[str]:
        """All owners that have one of its locks, or will have it before."""
        holders = {self._held[name].owner for name in request.names if name in self._held}
        earlier = self._queue[: self._queue.index(request)] if request in self._queue else []
        return holders | {other.owner for other in earlier if other.names & request.names}

    def _grant(self) -> None:
        wanted: set[str] = set()
        for request in list(self._queue):
            if not request.names & wanted and not any(name in self._held for name in request.names):
                self._queue.remove(request)
                for name in request.names:
                    self._held[name] = request
                request.granted.set()
            wanted |= request.names
