"""The bus within one process: the twin of NATS for the one-machine form and for tests.

All parts share one `MemBus`. Messages are bytes here too, so that nothing passes that could not travel.
"""

import asyncio
from collections.abc import Awaitable, Callable

from serai.lib.bus import (
    BusTimeout,
    Handler,
    Message,
    NoResponders,
    Subscription,
    call_handler,
    check_message,
    check_pattern,
    decode_error,
    matches,
)
from serai.lib.tasks import Tasks
from serai.lib.timeouts import time_limit
from serai.schema.errors import SeraiError, UnavailableError

REPLY = "_REPLY"


class _MemSubscription:
    """One subscriber: its queue of plain messages and the task that works it off."""

    def __init__(self, bus: "MemBus", subject: str, handler: Handler, queue: str | None) -> None:
        self._bus = bus
        self.subject = subject
        self.handler = handler
        self.queue = queue
        self.pending: asyncio.Queue[Message | None] = asyncio.Queue()

    async def unsubscribe(self) -> None:
        self._bus.forget(self)

    async def work(self) -> None:
        """Handle plain messages in order, until None comes."""
        while (message := await self.pending.get()) is not None:
            await call_handler(self.handler, message)


class MemBus:
    """See `bus.Bus`; one object is the whole bus."""

    def __init__(self) -> None:
        self._subscriptions: list[_MemSubscription] = []
        self._tasks = Tasks("membus")
        self._closed = False
        self._turn = 0

    @property
    def connected(self) -> bool:
        return not self._closed

    async def publish(self, subject: str, payload: bytes) -> None:
        self._check_open()
        check_message(subject, payload)
        for subscription in self._receivers(subject):
            subscription.pending.put_nowait(Message(subject, payload))

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        self._check_open()
        check_message(subject, payload)
        receivers = self._receivers(subject)
        if not receivers:
            raise NoResponders(f"nobody answers to {subject}")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        message = Message(subject, payload, REPLY)
        for subscription in receivers:
            self._tasks.start(self._answer(subscription.handler, message, answer))
        try:
            # Not wait_for: up to Python 3.11 it drops a cancellation that comes together with the answer.
            async with time_limit(timeout):
                return await answer
        except TimeoutError:
            raise BusTimeout(f"no reply from {subject} within {timeout:g} s") from None

    async def subscribe(self, subject: str, handler: Handler, queue: str | None = None) -> Subscription:
        self._check_open()
        check_pattern(subject)
        subscription = _MemSubscription(self, subject, handler, queue)
        self._subscriptions.append(subscription)
        self._tasks.start(subscription.work())
        return subscription

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Does nothing: a bus within the process is never lost."""

    async def close(self) -> None:
        """End all subscriptions and handlers; requests that still wait fail with UnavailableError."""
        self._closed = True
        self._subscriptions.clear()
        await self._tasks.close()

    def forget(self, subscription: _MemSubscription) -> None:
        """Drop a subscription: what is queued is handled, nothing new arrives."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            subscription.pending.put_nowait(None)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the bus is closed")

    def _receivers(self, subject: str) -> list[_MemSubscription]:
        chosen: list[_MemSubscription] = []
        groups: dict[str, list[_MemSubscription]] = {}
        for subscription in self._subscriptions:
            if not matches(subscription.subject, subject):
                continue
            if subscription.queue is None:
                chosen.append(subscription)
            else:
                groups.setdefault(subscription.queue, []).append(subscription)
        self._turn += 1
        chosen.extend(group[self._turn % len(group)] for group in groups.values())
        return chosen

    async def _answer(self, handler: Handler, message: Message, answer: asyncio.Future[bytes]) -> None:
        closed: SeraiError = UnavailableError(f"the bus was closed before {message.subject} replied")
        try:
            reply, error = await call_handler(handler, message)
        except asyncio.CancelledError:
            if not answer.done():
                answer.set_exception(closed)
            raise
        if answer.done():
            return
        if error is not None:
            answer.set_exception(decode_error(error))
        elif reply is not None:
            answer.set_result(reply)
