"""An API without a network: the real app, store and engine, workflows that do nothing, and rows put in by hand."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.controller.kit import THEN, Kit

from serai.controller.api.app import create_app
from serai.controller.api.auth import prepare
from serai.controller.api.call import Api
from serai.controller.hosts.listening import listening
from serai.controller.hosts.uploads import Uploads
from serai.controller.jobs.engine import Engine
from serai.controller.jobs.workflow import AnyContext, Services, Step
from serai.controller.services.rights import Rights
from serai.controller.store import Store
from serai.controller.workflows import WORKFLOWS
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.schema.host import Ability, Host, HostFacts, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName, ImageId, NetworkId, PoolId, VolumeId
from serai.schema.image import Image, ImageKind, ImageManifest, ImageSource, ImageSpec, ImageState, ImageStatus
from serai.schema.job import Job
from serai.schema.network import Network, NetworkSpec, NetworkStatus
from serai.schema.vm import Vm, VmState
from serai.schema.volume import Pool, PoolSpec, PoolStatus, Volume, VolumeSpec, VolumeState, VolumeStatus

GIB = 1 << 30


async def ended(store: Store, job_id: str) -> Job:
    """The job, once it has ended."""
    async with asyncio.timeout(10):
        while True:
            newest = store.bell.newest
            async with store.read() as view:
                job = await view.jobs.get(job_id)
            if job.state.ended:
                return job
            await store.bell.beyond(newest)


class NoHosts:
    """No command is sent in these tests."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a command was sent")


async def do_nothing(ctx: AnyContext) -> None:
    """A step of a workflow that is not the subject."""


class World:
    """The app with a token, and a few hosts, pools, images and networks."""

    def __init__(self, store: Store, engine: Engine, rights: Rights, http: httpx.AsyncClient) -> None:
        self.store = store
        self.rights = rights
        self.engine = engine
        self.http = http

    async def ok(self, method: str, path: str, body: Any = None, status: int | None = None) -> Any:
        answer = await self.http.request(method, path, json=body)
        assert answer.is_success, answer.text
        assert status is None or answer.status_code == status
        return answer.json() if answer.content else None

    async def refused(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The error, which must name what it should; with its status."""
        async with self.store.read() as view:
            before = await view.events.newest()
        answer = await self.http.request(method, path, json=body)
        assert answer.is_error, answer.text
        async with self.store.read() as view:
            assert await view.events.newest() == before, "a refused request changed something"
        error: dict[str, Any] = answer.json()["error"]
        assert error["remedy"], error
        return {**error, "status": answer.status_code}

    async def done(self, method: str, path: str, body: Any = None) -> Any:
        """A job, once it has ended."""
        job = await self.ok(method, path, body, status=202)
        return await ended(self.store, job["id"])

    async def host(self, name: str, *, memory: int = 8 * GIB, online: bool = True, target: bool = True) -> None:
        ability = Ability(name="iscsi-target", found=target, detail="tgtd is not installed", remedy="apt install tgt")
        facts = HostFacts(
            cpus=4,
            memory=memory,
            accel="tcg",
            qemu_version="10.0",
            machine_types=["pc-q35-10.0"],
            migration_capabilities=["events", "pause-before-switchover"],
            suppress_vmdesc=True,
            abilities=[ability],
        )
        state = HostState.ONLINE if online else HostState.OFFLINE
        async with self.store.transaction() as tx:
            host = Host(
                name=HostName(name),
                id=new_id(HostId),
                generation=1,
                created=tx.now,
                spec=HostSpec(memory_reserve=0),
                status=HostStatus(state=state, facts=facts, seen=tx.now),
            )
            await tx.hosts.insert(host)
            if online:
                await self.rights.report(tx, HostName(name), [])

    async def pool(self, name: str, host: str, **spec: Any) -> None:
        async with self.store.transaction() as tx:
            pool = Pool(
                name=name,
                id=new_id(PoolId),
                generation=1,
                created=tx.now,
                spec=PoolSpec(host=HostName(host), **spec),
                status=PoolStatus(state="ready", total=100 * GIB, free=50 * GIB),
            )
            await tx.pools.insert(pool)

    async def volume(self, name: str, pool: str) -> None:
        async with self.store.transaction() as tx:
            volume = Volume(
                kind="volume",
                name=name,
                id=new_id(VolumeId),
                generation=1,
                created=tx.now,
                spec=VolumeSpec(pool=(await tx.pools.find(pool)).id, size=GIB),
                status=VolumeStatus(state=VolumeState.READY, size=GIB),
            )
            await tx.volumes.insert(volume)

    async def image(self, name: str, kind: ImageKind, state: ImageState = ImageState.READY) -> None:
        manifest = ImageManifest(
            name=name, kind=kind, files=[], cloud_init=kind is ImageKind.DISK, virtual_size=2 * GIB
        )
        async with self.store.transaction() as tx:
            image = Image(
                name=name,
                id=new_id(ImageId),
                generation=1,
                created=tx.now,
                spec=ImageSpec(source=ImageSource.BUILD, recipe="tiny"),
                status=ImageStatus(state=state, manifest=manifest, hosts=[HostName("h1")]),
            )
            await tx.images.insert(image)

    async def network(self, name: str, start: str = "10.77.0.100", end: str = "10.77.0.102") -> None:
        spec = NetworkSpec.model_validate(
            {
                "bridge": "br-lan",
                "subnet": "10.77.0.0/24",
                "gateway": "10.77.0.1",
                "range_start": start,
                "range_end": end,
            }
        )
        async with self.store.transaction() as tx:
            network = Network(
                name=name, id=new_id(NetworkId), generation=1, created=tx.now, spec=spec, status=NetworkStatus()
            )
            await tx.networks.insert(network)

    async def create(self, name: str, **spec: Any) -> Vm:
        """A VM that was created, with its volumes ready."""
        await self.done("POST", "/v1/vms", {"name": name, "spec": {"image": "tiny", "memory": "256M", **spec}})
        async with self.store.transaction() as tx:
            vm = await tx.vms.find(name)
            for volume in await tx.volumes.of_vm(vm.id):
                await tx.volumes.update_status(volume.id, state=VolumeState.READY, size=volume.spec.size)
            return vm

    async def becomes(self, name: str, state: VmState, host: str | None = "h1") -> None:
        async with self.store.transaction() as tx:
            vm = await tx.vms.find(name)
            await tx.vms.update_status(vm.id, state=state, host=host)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, to be copied: making them takes longer than most tests."""
    file = tmp_path_factory.mktemp("template") / "serai.db"

    async def make() -> None:
        await (await Store.open(file)).close()

    asyncio.run(make())
    return file


@pytest.fixture
async def bare(tmp_path: Path, empty_database: Path) -> AsyncIterator[World]:
    """Nothing in it."""
    shutil.copyfile(empty_database, tmp_path / "serai.db")
    store = await Store.open(tmp_path / "serai.db")
    workflows = {kind: replace(row, steps=(Step("do", do_nothing),)) for kind, row in WORKFLOWS.items()}
    rights = Rights()
    engine = Engine(store, NoHosts(), workflows, Services(rights, Uploads(), b""))
    async with store.transaction() as tx:
        await rights.begin(tx)
    await engine.start()
    token_file = tmp_path / "token"
    app = create_app(Api(store, engine, rights), await prepare(store, token_file))
    headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://serai", headers=headers) as http:
        yield World(store, engine, rights, http)
    await engine.stop()
    await store.close()


@pytest.fixture
async def world(bare: World) -> World:
    """Two hosts (a third is offline), a pool on each, two images, a network of three addresses."""
    await bare.host("h1")
    await bare.host("h2")
    await bare.host("h3", online=False)
    await bare.pool("shared0", "h1")
    await bare.pool("local2", "h2", export="none")
    await bare.pool("lost", "h3")
    await bare.image("tiny", ImageKind.KERNEL)
    await bare.image("debian", ImageKind.DISK)
    await bare.image("raw", ImageKind.DISK, ImageState.CREATING)
    await bare.network("lan")
    return bare


@pytest.fixture
async def kit(tmp_path: Path, empty_database: Path) -> AsyncIterator[Kit]:
    clock = ManualClock(THEN)
    shutil.copyfile(empty_database, tmp_path / "serai.db")
    store = await Store.open(tmp_path / "serai.db", clock)
    bus = MemBus()
    rights = Rights()
    async with listening(bus, store, rights, clock) as hosts:
        made = Kit(store, bus, rights, hosts, clock)
        await made.reported("h1", "h2", "h3")
        yield made
    await bus.close()
    await store.close()
