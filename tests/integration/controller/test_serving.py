"""The controller as it serves: real sockets, the real client, event streams, console, upload, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from serai.app.controller import KEEP_ALIVE, WS_MESSAGE_MAX, Controller, ControllerConfig, Extras, running
from serai.client.console import console
from serai.client.context import Context
from serai.client.follow import EventStream
from serai.client.http import KEEP_ALIVE as CLIENT_KEEP_ALIVE
from serai.client.http import Client
from serai.controller.hosts.uploads import Uploads
from serai.controller.jobs.workflow import AnyContext, Services, Step
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.controller.workflows import WORKFLOWS
from serai.lib.membus import MemBus
from serai.schema.encoding import encode
from serai.schema.errors import ConflictError, InvalidError, NotFoundError, UnauthorizedError
from serai.schema.host import HostFacts
from serai.schema.ids import HostName, VmId
from serai.schema.image import Image, ImageCreate, ImageKind, ImageManifest, ImageSource, ImageSpec, ImageState
from serai.schema.job import JobState
from serai.schema.reports import Incarnation, Introduction
from serai.schema.subjects import Subjects
from serai.schema.vm import Vm

INCARNATION = Incarnation(journal="1" * 12, starts=1)
FACTS = HostFacts(cpus=4, memory=8 << 30, accel="tcg", qemu_version="10.0", machine_types=["pc-q35-10.0"])


class Guest:
    """The other end of a console: what is written comes back in capitals, until it is hung up."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False
        self.ended = ""

    async def read(self, n: int) -> bytes:
        return await self._said.get()

    def write(self, data: bytes) -> None:
        self._said.put_nowait(data.upper())

    async def drain(self) -> None:
        """There is always room."""

    def close(self) -> None:
        self.closed = True

    def power_off(self) -> None:
        self.ended = "the VM is stopped: " + "whatever the reason may be " * 9
        self._said.put_nowait(b"")


class World:
    """A controller on a folder of its own; `started` may be entered again and again."""

    def __init__(self, folder: Path) -> None:
        self.config = ControllerConfig(
            state=folder / "state", listen="127.0.0.1:0", socket=folder / "api.sock", token_file=folder / "api.token"
        )
        self.guest = Guest()
        self.received = b""
        self.go_on = asyncio.Event()
        self.reached = asyncio.Event()
        self.context = Context(socket=self.config.socket, token_file=self.config.token_file)

    async def extras(self, store: Store, rights: Rights) -> Extras:
        async def step(ctx: AnyContext) -> None:
            self.reached.set()
            await self.go_on.wait()
            ctx.progress(0.5, "half")

        async def open_console(vm: Vm) -> Guest:
            if vm.name != "web1":
                raise ConflictError("the VM is not running", field="vm", value=vm.name, remedy="Start it.")
            return self.guest

        async def receive(image: Image, stream: AsyncIterator[bytes], size: int) -> None:
            self.received = b"".join([chunk async for chunk in stream])
            assert len(self.received) == size
            if self.received.startswith(b"bad"):
                raise InvalidError("the checksum differs", field="sha256", value="0", remedy="Send it again.")
            manifest = ImageManifest(name=image.name, kind=ImageKind.DISK, files=[])
            async with store.transaction() as tx:
                await tx.images.update_status(image.id, state=ImageState.READY, manifest=manifest)

        steps = (Step("do", step, repeatable=True),)
        workflows = {kind: replace(row, steps=steps) for kind, row in WORKFLOWS.items()}
        return Extras(workflows, Services(rights, Uploads(), b""), open_console, receive)

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Controller]:
        bus = MemBus()
        try:
            async with running(self.config, bus, self.extras) as controller:
                said = Introduction(host=HostName("h1"), incarnation=INCARNATION, facts=FACTS)
                await bus.request(Subjects.hello("h1"), encode(said), timeout=5)
                yield controller
        finally:
            await bus.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


UPLOAD = ImageCreate(name="cloud", spec=ImageSpec(source=ImageSource.UPLOAD, sha256="a" * 64))


async def test_both_sockets_ask_for_the_token(world: World) -> None:
    async with world.started() as controller:
        assert world.config.socket is not None
        assert stat.S_IMODE(os.stat(world.config.socket).st_mode) == 0o600
        for context in (world.context, Context(url=controller.url, token_file=world.config.token_file)):
            async with Client(context) as client:
                assert [host.name for host in (await client.call("host.list")).items] == ["h1"]
            async with Client(context.model_copy(update={"token_file": None})) as client:
                with pytest.raises(UnauthorizedError):
                    await client.call("host.list")
                with pytest.raises(UnauthorizedError):
                    async with console(client, "web1"):
                        pass
    assert not world.config.socket.exists()


def test_an_idle_connection_is_closed_by_the_client_first() -> None:
    """A server that closes it just as it is used again looks as if it had died over the request."""
    assert KEEP_ALIVE >= 2 * CLIENT_KEEP_ALIVE


async def test_a_job_is_followed_to_its_end_by_the_stream(world: World) -> None:
    async with world.started(), Client(world.context) as client:
        job = await client.call("image.create", None, UPLOAD)
        await world.reached.wait()
        world.go_on.set()
        seen: list[float | None] = []
        done = await asyncio.wait_for(client.wait_job(job.id, lambda now: seen.append(now.progress)), 10)
        assert (done.state, seen[-1]) == (JobState.DONE, 1.0)


async def test_a_stream_that_resumes_misses_nothing(world: World) -> None:
    world.go_on.set()
    async with world.started() as controller, Client(world.context) as client:

        async def take(after: int, count: int) -> list[int]:
            found: list[int] = []
            stream = client.events(after)
            async with asyncio.timeout(10), contextlib.aclosing(stream):
                async for event in stream:
                    found.append(event.seq)
                    if len(found) == count:
                        break
            return found

        first = await take(0, 1)
        for _ in range(10):
            async with controller.store.transaction() as tx:
                await tx.emit("a", "b")
        rest = await take(first[-1], 10)
        assert rest == list(range(first[-1] + 1, first[-1] + 11))


async def test_a_restarted_controller_picks_its_jobs_up(world: World) -> None:
    async with world.started(), Client(world.context) as client:
        job = await client.call("image.create", None, UPLOAD)
        await world.reached.wait()
    world.go_on.set()
    async with world.started(), Client(world.context) as client:
        assert (await asyncio.wait_for(client.wait_job(job.id), 10)).state is JobState.DONE


async def test_a_silent_stream_shows_life(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.controller.api.events.HEARTBEAT", 0.01)
    world.go_on.set()
    async with world.started(), Client(world.context) as client:
        stream = EventStream(client).signals()
        async with asyncio.timeout(10), contextlib.aclosing(stream):
            assert [await anext(stream) for _ in range(3)] == [None, None, None]


async def test_going_down_ends_streams_and_consoles_at_once(world: World) -> None:
    world.go_on.set()
    async with contextlib.AsyncExitStack() as stack:
        async with world.started() as controller:
            client = await stack.enter_async_context(Client(world.context))
            await add_vm(controller, "web1")
            stream = client.events(0)
            await anext(stream)
            joined = await stack.enter_async_context(console(client, "web1"))
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 30
        await stream.aclose()
        with contextlib.suppress(Exception):
            await joined.recv()
    assert world.guest.closed


async def add_vm(controller: Controller, name: str) -> None:
    from serai.lib.ids import new_id
    from serai.schema.vm import VmSpec, VmStatus

    async with controller.store.transaction() as tx:
        vm = Vm(name=name, id=new_id(VmId), generation=1, created=tx.now, spec=VmSpec(), status=VmStatus())
        await tx.vms.insert(vm)


async def test_the_console_passes_bytes_both_ways(world: World) -> None:
    async with world.started() as controller, Client(world.context) as client:
        await add_vm(controller, "web1")
        await add_vm(controller, "web2")
        async with asyncio.timeout(10):
            async with console(client, "web1") as joined:
                await joined.send(b"hello")
                assert await joined.recv() == b"HELLO"
                await joined.send("text")
                assert await joined.recv() == b"TEXT"
            with pytest.raises(ConflictError, match="not running"):
                async with console(client, "web2"):
                    pass
            with pytest.raises(NotFoundError):
                async with console(client, "web3"):
                    pass
            while not world.guest.closed:
                await asyncio.sleep(0.005)


async def test_a_console_takes_no_message_without_end(world: World) -> None:
    async with world.started() as controller, Client(world.context) as client:
        await add_vm(controller, "web1")
        async with asyncio.timeout(10), console(client, "web1") as joined:
            await joined.send(b"x" * WS_MESSAGE_MAX)
            assert await joined.recv() == b"X" * WS_MESSAGE_MAX
            await joined.send(b"x" * (WS_MESSAGE_MAX + 1))
            await joined.wait_closed()
            assert joined.close_code == 1009


async def test_a_console_that_ends_says_why_as_far_as_there_is_room(world: World) -> None:
    async with world.started() as controller, Client(world.context) as client:
        await add_vm(controller, "web1")
        async with asyncio.timeout(10), console(client, "web1") as joined:
            world.guest.power_off()
            await joined.wait_closed()
            assert joined.close_reason is not None
            assert joined.close_reason.startswith("the VM is stopped: whatever the reason")


async def test_an_upload_arrives_whole_or_is_refused(world: World, tmp_path: Path) -> None:
    world.go_on.set()
    file = tmp_path / "disk.raw"
    file.write_bytes(os.urandom(3 << 20))
    async with world.started(), Client(world.context) as client:
        with pytest.raises(NotFoundError):
            await client.upload("cloud", file)
        await client.call("image.create", None, UPLOAD)
        file.write_bytes(b"bad" + file.read_bytes())
        with pytest.raises(InvalidError, match="checksum"):
            await client.upload("cloud", file)
        file.write_bytes(file.read_bytes()[3:])
        answer = await client.upload("cloud", file)
        assert world.received == file.read_bytes()
        assert answer["status"]["state"] == "ready"
        with pytest.raises(ConflictError, match="already"):
            await client.upload("cloud", file)


async def test_state_and_socket_that_another_has_are_left_to_it(world: World, tmp_path: Path) -> None:
    async with world.started():
        with pytest.raises(ConflictError, match="works on this state"):
            async with world.started():
                pass
        world.config = world.config.model_copy(update={"state": tmp_path / "other"})
        with pytest.raises(ConflictError, match="serves this socket"):
            async with world.started():
                pass
    assert world.config.socket is not None
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(world.config.socket))
    async with world.started():
        pass
