"""Renewal of certificates between host and controller, by a clock that is turned by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from serai.controller.reconcilers.certificates import Certificates
from serai.controller.store import Store
from serai.host.certificates import HostCertificates
from serai.lib.bus import Message
from serai.lib.clock import ManualClock
from serai.lib.ids import new_id
from serai.lib.membus import MemBus
from serai.lib.pki import CA_LIFE, CA_WARNING, LEAF_LIFE, WARNING, CertificateAuthority, TlsFiles, qemu_folder
from serai.lib.pkiprobe import look
from serai.schema.certificate import SignCertificate
from serai.schema.encoding import encode
from serai.schema.errors import HostError, UnauthorizedError, UnavailableError
from serai.schema.host import Host, HostFacts, HostSpec, HostState, HostStatus
from serai.schema.ids import HostId, HostName
from serai.schema.subjects import Subjects

DAY = timedelta(days=1)


class World:
    """A controller and the host h1, with certificates that were issued now."""

    def __init__(self, folder: Path, store: Store, clock: ManualClock) -> None:
        self.folder = folder
        self.store = store
        self.clock = clock
        self.bus = MemBus()
        self.reloads = 0
        self.bus_is_away = False
        authority = CertificateAuthority.create(folder / "controller/ca", clock=clock)
        self.own = authority.issue("controller", dns=[], ips=[], dir=folder / "controller/pki")
        authority.issue_host("h1", folder / "pki")
        self.agent, self.qemu = TlsFiles.in_folder(folder / "pki"), TlsFiles.in_folder(qemu_folder(folder / "pki"))
        self.controller = Certificates(store, authority, self.own, clock, self._reload)
        self.host = HostCertificates("h1", folder / "pki", self.bus, clock)

    async def _reload(self) -> None:
        if self.bus_is_away:
            raise HostError("no nats-server runs there")
        self.reloads += 1

    async def greet(self, facts: HostFacts | None = None) -> Host:
        async with self.store.transaction() as tx:
            known = await tx.hosts.named(HostName("h1"))
            status = HostStatus(state=HostState.ONLINE, facts=facts)
            if known is not None:
                return await tx.hosts.set_status(known.id, status)
            host = Host(
                name=HostName("h1"), id=HostId(new_id()), generation=1, created=tx.now, spec=HostSpec(), status=status
            )
            await tx.hosts.insert(host)
            return host

    def at(self, share: float) -> None:
        """Turn the clock to this share of the certificates' life."""
        self.clock.advance((self.own.expires - LEAF_LIFE * (1 - share) - self.clock.now()).total_seconds())

    async def events(self) -> list[tuple[str, str]]:
        async with self.store.read() as view:
            found = [json.loads(text) for _, text in await view.events.after(0, 99)]
        return [(event["kind"], event["resource"]) for event in found]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    store = await Store.open(tmp_path / "serai.db", clock)
    it = World(tmp_path, store, clock)
    await it.greet()
    yield it
    await it.bus.close()
    await store.close()


async def test_a_host_renews_both_certificates_at_two_thirds_of_their_life(world: World) -> None:
    await world.controller.listen(world.bus)
    before = [tls.cert.read_bytes() for tls in (world.agent, world.qemu)]
    world.at(0.66)
    await world.host.renew()
    assert [tls.cert.read_bytes() for tls in (world.agent, world.qemu)] == before
    world.at(0.67)
    await world.host.renew()
    assert not set(before) & {tls.cert.read_bytes() for tls in (world.agent, world.qemu)}
    assert (world.agent.identity, world.qemu.identity) == ("host.h1", "qemu.h1")
    assert world.host.expiries == dict.fromkeys(("host.h1", "qemu.h1"), world.clock.now() + LEAF_LIFE)
    assert await world.events() == [("certificate.renewed", "host/h1")] * 2
    await world.host.renew()
    assert len(await world.events()) == 2


async def test_a_renewal_that_fails_leaves_what_there_is(world: World) -> None:
    before = world.agent.cert.read_bytes()
    world.at(0.7)
    with pytest.raises(UnavailableError):
        await world.host.renew()
    assert world.agent.cert.read_bytes() == before
    await world.controller.listen(world.bus)
    await world.host.renew()
    assert world.agent.cert.read_bytes() != before


@pytest.mark.parametrize("identity", ["host.h2", "qemu.h2", "controller", "host.h1.x", "h1", ""])
async def test_a_host_is_certified_for_nothing_but_itself(world: World, identity: str) -> None:
    ask = SignCertificate(identity=identity, request="")
    with pytest.raises(UnauthorizedError, match="its own identities only"):
        await world.controller.sign(Message(Subjects.certificate("h1"), encode(ask), None))
    assert await world.events() == []


async def test_a_host_that_is_not_known_is_certified_for_nothing(world: World) -> None:
    with pytest.raises(UnauthorizedError):
        await world.controller.sign(
            Message(Subjects.certificate("h9"), encode(SignCertificate(identity="host.h9", request="")), None)
        )


async def test_the_controller_renews_its_own_and_has_the_bus_show_it(world: World) -> None:
    world.at(0.66)
    for _ in range(2):
        await world.controller.look()
        assert world.reloads == 1, "at the start, and not again"
    world.at(0.67)
    world.bus_is_away = True
    with pytest.raises(HostError):
        await world.controller.look()
    world.bus_is_away = False
    for _ in range(2):
        await world.controller.look()
        assert world.reloads == 2
    assert world.own.expires == world.clock.now() + LEAF_LIFE
    assert await world.events() == [("certificate.renewed", "certificate/controller")]


async def test_what_ends_soon_is_told_once(world: World) -> None:
    facts = HostFacts(cpus=1, memory=1, accel="tcg", qemu_version="10", certificates=world.host.expiries)
    await world.greet(facts)
    world.clock.advance((world.agent.expires - WARNING - world.clock.now() - DAY).total_seconds())
    await world.controller.look()
    assert await world.events() == [("certificate.renewed", "certificate/controller")]
    world.clock.advance((2 * DAY).total_seconds())
    for _ in range(2):
        await world.controller.look()
        assert (await world.events())[1:] == [("certificate.expires", "host/h1")] * 2
    await world.controller.listen(world.bus)
    await world.host.renew()
    await world.greet(facts.model_copy(update={"certificates": world.host.expiries}))
    await world.controller.look()
    assert (await world.events())[3:] == [("certificate.renewed", "host/h1")] * 2


async def test_the_end_of_the_authority_is_told_a_year_before(world: World) -> None:
    world.clock.advance((CA_LIFE - CA_WARNING + DAY).total_seconds())
    await world.controller.look()
    assert ("certificate.expires", "certificate/authority") in await world.events()


def test_doctor_says_until_when(world: World) -> None:
    def found() -> dict[str, bool]:
        return {ability.name: ability.found for ability in look(world.folder, world.clock)}

    names = ("host.h1", "qemu.h1", "controller", "authority")
    assert found() == dict.fromkeys(names, True)
    world.clock.advance((LEAF_LIFE - WARNING + DAY).total_seconds())
    assert found() == {**dict.fromkeys(names, False), "authority": True}
    (late, *_) = look(world.folder, world.clock)
    assert str(world.agent.expires.date()) in late.detail
    assert "renewed by themselves" in late.remedy
    world.clock.advance((CA_LIFE - LEAF_LIFE - CA_WARNING + WARNING).total_seconds())
    assert found()["authority"] is False
    assert [ability.found for ability in look(world.folder / "nowhere", world.clock)] == [True]
