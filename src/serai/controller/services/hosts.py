"""What is known of a host."""

from __future__ import annotations

from serai.schema.errors import UnavailableError
from serai.schema.host import Host, HostFacts, HostState


def facts_of(host: Host) -> HostFacts:
    """An online host's facts. Raises UnavailableError with the host's name."""
    if host.status.state is not HostState.ONLINE or host.status.facts is None:
        raise UnavailableError(
            f"host {host.name} does not answer",
            field="host",
            value=host.name,
            remedy="Start its agent, or wait until it is back.",
        )
    return host.status.facts
