"""Who this agent is, and the full word on itself that it gives the controller."""

from __future__ import annotations

from itertools import count

from serai.host.store import HostStore
from serai.schema.host import HostFacts
from serai.schema.ids import HostName, VmId
from serai.schema.reports import Introduction


class HostIdentity:
    """`numbers` gives each report of this agent its sequence. `facts` are replaced as they change."""

    def __init__(self, name: HostName, store: HostStore, facts: HostFacts) -> None:
        self.name = name
        self.facts = facts
        self.incarnation = store.begin()
        self.numbers = count(1)
        self._store = store

    def introduce(self, strays: list[VmId]) -> Introduction:
        """What a hello says, and `host.introduce` is answered with. `strays`: see `Supervisor.strays`."""
        return Introduction(
            host=self.name,
            incarnation=self.incarnation,
            facts=self.facts,
            seen=self._store.seen(),
            leases=self._store.standing(),
            strays=strays,
        )
