"""Named locks that jobs hold: who comes first gets them all at once, and the others know whom they wait for.

A job gets its locks when none of them is held, nor wanted by a job that asked before: so nobody starves, and since
nobody holds one while waiting for another, nothing locks up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Request:
    """One job's wish. `granted` is set once it holds all of `names`."""

    owner: str
    names: frozenset[str]
    granted: asyncio.Event = field(default_factory=asyncio.Event)


class Locks:
    """The locks of one controller. They live in memory: a restarted controller asks for those of its jobs again."""

    def __init__(self) -> None:
        self._held: dict[str, Request] = {}
        self._queue: list[Request] = []

    def request(self, owner: str, names: Sequence[str]) -> Request:
        """Join the queue; granted at once if nothing is in the way."""
        wish = Request(owner, frozenset(names))
        self._queue.append(wish)
        self._grant()
        return wish

    def release(self, wish: Request) -> None:
        """Give up what is held, or the place in the queue."""
        if wish in self._queue:
            self._queue.remove(wish)
        for name in wish.names:
            if self._held.get(name) is wish:
                del self._held[name]
        self._grant()

    def blockers(self, wish: Request) -> dict[str, str]:
        """Lock name to the owner that holds it, or that will have it first."""
        found = {name: self._held[name].owner for name in wish.names if name in self._held}
        for earlier in self._queue:
            if earlier is wish:
                break
            for name in earlier.names & wish.names:
                found.setdefault(name, earlier.owner)
        return {} if wish.granted.is_set() else found

    def ahead(self, wish: Request) -> set[str]:
        """All owners that have one of its locks, or will have it before."""
        holders = {self._held[name].owner for name in wish.names if name in self._held}
        earlier = self._queue[: self._queue.index(wish)] if wish in self._queue else []
        return holders | {other.owner for other in earlier if other.names & wish.names}

    def _grant(self) -> None:
        wanted: set[str] = set()
        for wish in list(self._queue):
            if not wish.names & wanted and not any(name in self._held for name in wish.names):
                self._queue.remove(wish)
                for name in wish.names:
                    self._held[name] = wish
                wish.granted.set()
            wanted |= wish.names
