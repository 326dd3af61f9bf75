"""The bus: small messages between agents, by subject.

A subject is tokens joined by dots. A subscription's subject may hold `*` (one token) and, at the end, `>` (one token
or more). Subscribers with the same queue name share the messages: each goes to one of them.

What a handler returns is the reply to a request; None sends none. A handler that raises replies with the error, and
the requester gets that exception again (`schema.errors`). Requests are handled concurrently, plain messages of one
subscription one after the other, in order. Silence means nothing: a request that timed out may have been carried out,
so commands carry an id and repeat alike.

Two buses keep this contract: `membus.MemBus` within a process, `natsbus.NatsBus` over NATS.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from serai.schema.errors import ErrorInfo, InvalidError, SeraiError, UnauthorizedError, UnavailableError, from_info

log = logging.getLogger(__name__)

MAX_PAYLOAD = 1024 * 1024
"""Bytes in one message at most (the default of nats-server); more goes over `lib.stream`."""


class BusTimeout(UnavailableError):  # noqa: N818 - the field's word
    """No reply came in time; the request may have been carried out or not."""


class NoResponders(UnavailableError):  # noqa: N818 - the field's word
    """Nobody subscribes to the subject; the request was not carried out."""


class BusDenied(UnauthorizedError):  # noqa: N818 - the field's word
    """The bus refused the subject to this identity."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as a handler gets it; `reply` is where an answer goes, None if none is asked for."""

    subject: str
    payload: bytes
    reply: str | None = None


Handler = Callable[[Message], Awaitable[bytes | None]]


class Subscription(Protocol):
    """A live subscription."""

    @property
    def subject(self) -> str:
        """The subject subscribed to."""

    async def unsubscribe(self) -> None:
        """Deliver nothing more; handlers already at work go on. Harmless when repeated."""


class Bus(Protocol):
    """What every bus does; see the module's text for the rules."""

    @property
    def connected(self) -> bool:
        """True while messages can pass."""

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send to all subscribers, without waiting; raises UnavailableError if the bus cannot even queue it."""

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        """Send and return the first reply; `timeout` in seconds.

        Raises BusTimeout, NoResponders, BusDenied, or the error that the handler raised.
        """

    async def subscribe(self, subject: str, handler: Handler, queue: str | None = None) -> Subscription:
        """Call the handler for every message from now on; the subscription outlives reconnects. Raises BusDenied."""

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await the callback each time the bus is there again after it was lost."""

    async def close(self) -> None:
        """End all subscriptions and handlers, then the connection."""


def matches(pattern: str, subject: str) -> bool:
    """Say whether a message to `subject` reaches a subscription to `pattern`."""
    wanted = pattern.split(".")
    tokens = subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(tokens) > index
        if index >= len(tokens) or part not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)


def check_message(subject: str, payload: bytes) -> None:
    """Raise InvalidError unless this can be sent: a subject without wildcards, a payload within MAX_PAYLOAD."""
    _check_tokens(subject, wildcards=False)
    if len(payload) > MAX_PAYLOAD:
        raise InvalidError(
            f"a bus message holds {MAX_PAYLOAD} bytes at most",
            field="payload",
            value=f"{len(payload)} bytes to {subject}",
            remedy="Send large data over a stream.",
        )


def check_pattern(subject: str) -> None:
    """Raise InvalidError unless this can be subscribed to."""
    _check_tokens(subject, wildcards=True)


def _check_tokens(subject: str, *, wildcards: bool) -> None:
    tokens = subject.split(".")
    for index, part in enumerate(tokens):
        if wildcards and (part == "*" or (part == ">" and index == len(tokens) - 1)):
            continue
        if not part or any(mark.isspace() or mark in "*>" for mark in part):
            raise InvalidError("not a bus subject", field="subject", value=subject)


def encode_error(error: Exception) -> bytes:
    """Return the travelling form (JSON of ErrorInfo) of what a handler raised."""
    if isinstance(error, SeraiError):
        return error.info.model_dump_json().encode()
    # Not one of ours: a fault in the handler. The text helps the requester; the trace is in the handler's own log.
    return ErrorInfo(code="internal", message=f"{type(error).__name__}: {error}").model_dump_json().encode()


def decode_error(data: bytes) -> SeraiError:
    """Return the exception of an error reply."""
    try:
        return from_info(ErrorInfo.model_validate_json(data))
    except ValidationError:
        return SeraiError(f"the other end failed and sent an error that cannot be read: {data[:200]!r}")


async def call_handler(handler: Handler, message: Message) -> tuple[bytes | None, bytes | None]:
    """Run a handler; return (reply, None), (None, encoded error), or (None, None) for no reply."""
    try:
        return await handler(message), None
    except SeraiError as error:
        log.info("handler of %s refused: %s", message.subject, error)
        return None, encode_error(error)
    except Exception as error:
        # Whatever the fault is, it must reach the requester.
        log.error("handler of %s failed: %s", message.subject, error, exc_info=error)
        return None, encode_error(error)
