"""The bus over NATS: `bus.Bus` with mutual TLS, connected for as long as it lives.

A NATS client that loses its server is thrown away and a new one is made, again and again until it is there; then all
subscriptions are made again and the `on_reconnect` callbacks run. (The library's own reconnection gives up for good on
an authorization error, which is what a server says while its configuration is being renewed.)

A reply goes to an inbox: a subject that only the requester may hear, with 128 random bits in it, so that only the
receiver can answer. A message that asks for its reply anywhere else gets none: it would have us speak for it.

While the server is away, `publish` keeps up to 2 MB for later, in order; a request waits for the connection within its
time-out; a request whose reply had not come is lost and says so at once.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsLibrarySubscription

from serai.lib.bus import (
    MAX_PAYLOAD,
    BusDenied,
    BusTimeout,
    Handler,
    Message,
    NoResponders,
    Subscription,
    call_handler,
    check_message,
    check_pattern,
    decode_error,
    encode_error,
)
from serai.lib.natsserver import INBOX, inbox_prefix
from serai.lib.pki import TlsFiles
from serai.lib.tasks import Tasks
from serai.lib.timeouts import time_limit
from serai.schema.errors import InvalidError, UnavailableError

log = logging.getLogger(__name__)

ERROR_HEADER = "Serai-Error"
STATUS_HEADER, NO_RESPONDERS = "Status", "503"
"""How the server itself answers a request to a subject that nobody listens to."""
KEPT_BYTES = 2 * 1024 * 1024
"""Bytes of published messages kept while the server is away."""
FIRST_DELAY, LAST_DELAY = 0.1, 2.0
"""Seconds between two attempts to connect, at first and at last."""
CONNECT_TIMEOUT = 5
DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)

LOST = (
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.StaleConnectionError,
)


class _NatsSubscription:
    """A subscription that is made again at each new connection."""

    def __init__(self, bus: "NatsBus", subject: str, handler: Handler, queue: str | None) -> None:
        self._bus = bus
        self.subject = subject
        self.handler = handler
        self.queue = queue
        self.current: NatsLibrarySubscription | None = None

    async def unsubscribe(self) -> None:
        await self._bus.forget(self)


class _Refusals:
    """Who waits to hear that the server refuses a subject: it says so apart from the request that it concerns."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._watchers: dict[tuple[str, str], set[asyncio.Future[None]]] = {}

    @contextlib.contextmanager
    def watch(self, what: str, subject: str) -> Iterator[asyncio.Future[None]]:
        """Yield a future that fails with BusDenied if the server refuses that subject meanwhile."""
        # The client library puts the server's words in lower case before we get them.
        key = (what, subject.lower())
        watchers = self._watchers.setdefault(key, set())
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watchers.add(watcher)
        try:
            yield watcher
        finally:
            watchers.discard(watcher)
            if not watchers:
                self._watchers.pop(key, None)
            if watcher.done():
                watcher.exception()  # seen, or of no interest any more: not to be reported as never retrieved

    def match(self, error: Exception) -> str | None:
        """Tell the watchers if this is a refusal; return it in words, None if it is another error."""
        denied = DENIED.search(str(error))
        if denied is None:
            return None
        what, subject = denied[1].lower(), denied[2].lower()
        words = f"{what} to {subject} is refused to {self._identity}"
        for watcher in self._watchers.get((what, subject), ()):
            if not watcher.done():
                watcher.set_exception(BusDenied(words))
        return words


class _Inbox:
    """Where the replies of one connection come in: each request has a subject of its own, told to nobody else."""

    def __init__(self, identity: str) -> None:
        self._prefix = inbox_prefix(identity)
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    @property
    def pattern(self) -> str:
        return f"{self._prefix}.*"

    @contextlib.contextmanager
    def expect(self) -> Iterator[tuple[str, asyncio.Future[Msg]]]:
        """Yield a subject for one reply, and the future that it comes to."""
        where = f"{self._prefix}.{secrets.token_hex(16)}"
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[where] = reply
        try:
            yield where, reply
        finally:
            del self._waiting[where]
            reply.cancel()

    async def deliver(self, msg: Msg) -> None:
        """Hand a message to the request that it answers; the first one counts."""
        reply = self._waiting.get(msg.subject)
        if reply is not None and not reply.done():
            reply.set_result(msg)


class NatsBus:
    """See `bus.Bus`. Made by `connect`; `close` it."""

    def __init__(self, url: str, tls: TlsFiles, name: str) -> None:
        self._url = url
        self._tls = tls
        self._name = name
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._closed = False
        self._last_error: Exception | None = None
        self._subscriptions: list[_NatsSubscription] = []
        self._callbacks: list[Callable[[], Awaitable[None]]] = []
        self._kept: deque[tuple[str, bytes]] = deque()
        self._kept_bytes = 0
        self._refusals = _Refusals(tls.identity)
        self._inbox = _Inbox(tls.identity)
        self._tasks = Tasks(f"bus {name}")

    @classmethod
    async def connect(cls, url: str, tls: TlsFiles, name: str, *, timeout: float | None = 10) -> "NatsBus":
        """Connect as the identity of `tls`; `name` is shown in the server's records.

        Raises UnavailableError (BusDenied if the server refuses the identity) unless connected within `timeout`
        seconds; with None returns at once and connects when the server is there.
        """
        bus = cls(url, tls, name)
        bus._tasks.start(bus._keep(awaited=timeout is not None), "keep")
        if timeout is not None:
            try:
                async with time_limit(timeout):
                    await bus._up.wait()
            except TimeoutError:
                error = bus._last_error
                await bus.close()
                # The client library has a class for this and uses it on some paths only.
                denied = "authorization violation" in str(error).lower()
                kind = BusDenied if denied else UnavailableError
                raise kind(f"no bus at {url} within {timeout:g} s: {error}") from error
            except BaseException:
                await bus.close()
                raise
        return bus

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send without waiting; a subject that is refused shows in the log only."""
        check_message(subject, payload)
        self._check_open()
        client = self._client
        if client is not None and not self._kept:
            try:
                await client.publish(subject, payload)
            except LOST:
                pass  # it goes with the next connection
            else:
                return
        if self._kept_bytes + len(payload) > KEPT_BYTES:
            raise UnavailableError(f"the bus is away and {self._kept_bytes} bytes wait for it already")
        self._kept.append((subject, payload))
        self._kept_bytes += len(payload)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        check_message(subject, payload)
        self._check_open()
        try:
            async with time_limit(timeout):
                await self._up.wait()
                client, lost = self._client, self._lost
                if client is None:
                    raise BusTimeout(f"the bus was lost before {subject} was asked")
                reply = await self._ask(client, lost, subject, payload)
        except TimeoutError:
            raise BusTimeout(f"no reply from {subject} within {timeout:g} s") from None
        if reply.headers is not None and ERROR_HEADER in reply.headers:
            raise decode_error(reply.data)
        return reply.data

    async def subscribe(self, subject: str, handler: Handler, queue: str | None = None) -> Subscription:
        """Call the handler for every message from now on; raises BusDenied."""
        check_pattern(subject)
        self._check_open()
        subscription = _NatsSubscription(self, subject, handler, queue)
        self._subscriptions.append(subscription)
        if self._client is not None:
            try:
                await self._establish(self._client, subscription)
            except LOST:
                pass  # made with the next connection
            except nats.errors.FlushTimeoutError:
                self._lost.set()  # a server that does not answer is as good as gone
            except BusDenied:
                self._subscriptions.remove(subscription)
                raise
        return subscription

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await the callback each time the server is there again after it was lost.

        The first connection counts too if `connect` did not wait for it.
        """
        self._callbacks.append(callback)

    async def close(self) -> None:
        """End all subscriptions and handlers, then the connection; what was published is sent first."""
        self._closed = True
        self._up.clear()
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(*LOST, nats.errors.TimeoutError, nats.errors.FlushTimeoutError):
                await client.flush(1)
        await self._tasks.close()
        if client is not None:
            await client.close()

    async def forget(self, subscription: _NatsSubscription) -> None:
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        if subscription.current is not None:
            with contextlib.suppress(*LOST, nats.errors.BadSubscriptionError):
                await subscription.current.unsubscribe()

    def _is_closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the bus is closed")

    async def _keep(self, *, awaited: bool) -> None:
        """Connect, wait until the connection is lost, and again, until closed."""
        delay = FIRST_DELAY
        first = awaited
        # The flag is looked at besides the cancellation, since `asyncio.wait_for` of Python 3.11, which the client
        # library uses, can lose a cancellation.
        while not self._is_closed():
            lost = asyncio.Event()
            try:
                client = await self._open(lost)
            except (OSError, nats.errors.Error, TimeoutError, EOFError) as error:
                self._note(error)
                if not self._is_closed():
                    await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY)
                continue
            if self._is_closed():
                self._up.clear()
                self._client = None
                await client.close()
                return
            delay = FIRST_DELAY
            self._last_error = None
            log.info("connected to the bus at %s", self._url)
            if not first:
                self._tasks.start(self._tell())
            first = False
            try:
                await lost.wait()
            finally:
                self._up.clear()
                self._client = None
            log.warning("lost the bus at %s", self._url)
            await client.close()

    def _note(self, error: Exception) -> None:
        """Remember why there is no connection, and say it once."""
        if isinstance(error, nats.errors.NoServersError):
            return  # the library's word for "that was all"; the reason came before
        if str(error) != str(self._last_error):
            log.warning("no connection to the bus at %s: %s", self._url, error or type(error).__name__)
        self._last_error = error

    async def _open(self, lost: asyncio.Event) -> Client:
        async def closed() -> None:
            lost.set()

        client = await nats.connect(
            self._url,
            name=self._name,
            tls=await asyncio.to_thread(self._tls.client_context),
            allow_reconnect=False,
            # One round of attempts, without pauses: those are made here.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=CONNECT_TIMEOUT,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            closed_cb=closed,
            disconnected_cb=closed,
        )
        try:
            await client.subscribe(self._inbox.pattern, cb=self._inbox.deliver)
            for subscription in self._subscriptions:
                try:
                    await self._establish(client, subscription)
                except BusDenied as error:
                    # Not fatal here: the right may come with the server's next configuration.
                    log.error("%s", error)
            while self._kept:
                subject, payload = self._kept[0]
                await client.publish(subject, payload)
                self._kept.popleft()
                self._kept_bytes -= len(payload)
        except BaseException:
            await client.close()
            raise
        self._client, self._lost = client, lost
        self._up.set()
        return client

    async def _tell(self) -> None:
        for callback in self._callbacks:
            try:
                await callback()
            except Exception as error:
                # One part's failure to catch up must not keep the others from it.
                log.error("a reconnect callback failed: %s", error, exc_info=error)

    async def _establish(self, client: Client, subscription: _NatsSubscription) -> None:
        async def deliver(msg: Msg) -> None:
            message = Message(msg.subject, msg.data, msg.reply or None)
            if message.reply is None:
                await call_handler(subscription.handler, message)
            elif not message.reply.startswith(f"{INBOX}."):
                log.error("%s asks for a reply on %s, which is no inbox: not handled", msg.subject, message.reply)
            elif not self._closed:
                self._tasks.start(self._reply(client, subscription.handler, message, message.reply))

        with self._refusals.watch("subscription", subscription.subject) as refused:
            subscription.current = await client.subscribe(
                subscription.subject, queue=subscription.queue or "", cb=deliver
            )
            # The server's refusal, if any, comes before its answer to this. Twice, as the library writes the first
            # ping ahead of what it had queued; by its answer that is written, and the second comes after it.
            await client.flush(CONNECT_TIMEOUT)
            await client.flush(CONNECT_TIMEOUT)
            if refused.done():
                refused.result()

    async def _reply(self, client: Client, handler: Handler, message: Message, where: str) -> None:
        reply, error = await call_handler(handler, message)
        if reply is not None and len(reply) > MAX_PAYLOAD:
            log.error("the reply to %s has %d bytes, too many for the bus", message.subject, len(reply))
            too_big = InvalidError(f"the reply to {message.subject} is too large for the bus ({len(reply)} bytes)")
            reply, error = None, encode_error(too_big)
        try:
            if error is not None:
                await client.publish(where, error, headers={ERROR_HEADER: "1"})
            elif reply is not None:
                await client.publish(where, reply)
        except LOST as lost:
            log.warning("the reply to %s was lost with the connection: %s", message.subject, lost)

    async def _ask(self, client: Client, lost: asyncio.Event, subject: str, payload: bytes) -> Msg:
        """Request, unless the connection ends or the server refuses the subject before the reply."""
        gone = asyncio.ensure_future(lost.wait())
        with self._inbox.expect() as (where, reply), self._refusals.watch("publish", subject) as refused:
            try:
                await client.publish(subject, payload, reply=where)
                await asyncio.wait((reply, gone, refused), return_when=asyncio.FIRST_COMPLETED)
            except LOST as error:
                raise BusTimeout(f"the connection to the bus was lost before {subject} replied") from error
            finally:
                gone.cancel()
                await asyncio.wait((gone,))
            if refused.done():
                refused.result()
            if not reply.done():
                raise BusTimeout(f"the connection to the bus was lost before {subject} replied")
            answer = reply.result()
        if answer.headers is not None and answer.headers.get(STATUS_HEADER) == NO_RESPONDERS:
            raise NoResponders(f"nobody answers to {subject}")
        return answer

    async def _on_error(self, error: Exception) -> None:
        refusal = self._refusals.match(error)
        if refusal is not None:
            log.error("bus %s: %s", self._name, refusal)
        elif self.connected:
            log.warning("bus %s: %s", self._name, error or type(error).__name__)
        else:
            self._note(error)
