"""From spec to launch: all parts are there, two epochs differ in their disks' accounts alone, secrets stay hidden."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any

import pytest

from serai.core import launch as plan
from serai.schema.errors import ConflictError, UnsupportedError
from serai.schema.host import HostFacts
from serai.schema.ids import HostName, ImageId, NetworkId, PoolId, VmId, VolumeId
from serai.schema.image import Image, ImageKind, ImageManifest, ImageSource, ImageSpec, ImageStatus
from serai.schema.launch import FileDisk, IscsiDisk, Launch
from serai.schema.network import Network, NetworkSpec, NetworkStatus
from serai.schema.vm import CloudInit, MachineKind, Vm, VmSpec, VmStatus, VnicSpec
from serai.schema.volume import ExportKind, Pool, PoolSpec, PoolStatus, Volume, VolumeSpec, VolumeStatus

SECRET = b"installation"
CREATED = datetime(2026, 1, 1, tzinfo=UTC)
VM = VmId("0123456789ab")
H1 = HostName("h1")
LAN = NetworkId("a" * 12)
POOL = PoolId("c" * 12)


def facts(**changes: Any) -> HostFacts:
    values: dict[str, Any] = {
        "cpus": 2,
        "memory": 4 << 30,
        "accel": "tcg",
        "qemu_version": "10.0.0",
        "machine_types": ["pc-q35-7.2", "pc-q35-10.0", "pc-q35-9.2", "microvm", "q35"],
        "migration_capabilities": [],
        "cpu_model": "max",
        "addresses": {},
        "abilities": [],
        "agent_version": "1",
    }
    return HostFacts(**{**values, **changes})


def network(**changes: Any) -> Network:
    spec = NetworkSpec.model_validate({"subnet": "10.77.0.0/24", "bridge": "br-lan", **changes})
    return Network(name="lan", id=LAN, generation=1, created=CREATED, spec=spec, status=NetworkStatus())


def image(kind: ImageKind, *, cloud_init: bool = False) -> Image:
    manifest = ImageManifest(name="linux", kind=kind, files=[], cmdline="console=ttyS0", cloud_init=cloud_init)
    spec = ImageSpec(source=ImageSource.BUILD, recipe="tiny")
    status = ImageStatus(manifest=manifest)
    return Image(name="linux", id=ImageId("b" * 12), generation=1, created=CREATED, spec=spec, status=status)


def disk(export: ExportKind) -> plan.DiskPlan:
    spec = PoolSpec(host=HostName("h1"), export=export)
    pool = Pool(name="fast", id=POOL, generation=1, created=CREATED, spec=spec, status=PoolStatus())
    volume = Volume(
        name="web1-0",
        id=VolumeId("d" * 12),
        generation=1,
        created=CREATED,
        spec=VolumeSpec(pool=POOL, size=1 << 30),
        status=VolumeStatus(),
    )
    if export is ExportKind.NONE:
        return plan.DiskPlan(volume, pool)
    return plan.DiskPlan(volume, pool, portal="10.78.0.11:3260", target="iqn.2026-01.io.serai:v", lun=1)


def vm(**spec: Any) -> Vm:
    vnic = VnicSpec(network=LAN, mac="52:54:00:00:00:01", ip=IPv4Address("10.77.0.100"))
    wanted = VmSpec.model_validate({"vnics": [vnic], "memory": 64 << 20, **spec})
    return Vm(name="web1", id=VM, generation=7, created=CREATED, spec=wanted, status=VmStatus())


def launch(
    *, of: Vm | None = None, image_: Image | None = None, disks: list[plan.DiskPlan] | None = None, epoch: int = 1
) -> Launch:
    parts = plan.Parts(
        vm=of or vm(),
        disks=disks or [],
        networks={LAN: network(gateway="10.77.0.1", nameservers=["10.77.0.1"])},
        image=image_,
    )
    return plan.launch(parts, epoch=epoch, host=H1, accel="tcg", machine="pc-q35-10.0", secret=SECRET)


def test_a_kernel_image_boots_directly_and_has_its_address_on_the_command_line() -> None:
    found = launch(of=vm(cmdline="serai.mem=30:2"), image_=image(ImageKind.KERNEL))
    assert found.boot is not None
    assert found.boot.image == "b" * 12
    assert found.boot.cmdline == "console=ttyS0 serai.ip=10.77.0.100/24 serai.gw=10.77.0.1 serai.mem=30:2"
    assert found.seed is None
    assert (found.vm, found.name, found.generation, found.cpus, found.memory) == (VM, "web1", 7, 1, 64 << 20)


def test_a_disk_image_boots_from_its_disk_with_a_seed() -> None:
    spec = {"cloud_init": CloudInit(ssh_keys=["ssh-ed25519 AAAA me"], user_data="#cloud-config\nhostname: x\n")}
    found = launch(of=vm(**spec), image_=image(ImageKind.DISK, cloud_init=True), disks=[disk(ExportKind.NONE)])
    assert found.boot is None
    assert found.seed is not None
    assert found.seed.user_data == "#cloud-config\nhostname: x\n"
    assert json.loads(found.seed.meta_data) == {
        "instance-id": VM,
        "local-hostname": "web1",
        "public-keys": ["ssh-ed25519 AAAA me"],
    }
    assert json.loads(found.seed.network_config) == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": "52:54:00:00:00:01"},
                "set-name": "eth0",
                "addresses": ["10.77.0.100/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.77.0.1"}],
                "nameservers": {"addresses": ["10.77.0.1"]},
            }
        },
    }


def test_user_data_is_never_empty() -> None:
    found = launch(image_=image(ImageKind.DISK, cloud_init=True))
    assert found.seed is not None
    assert found.seed.user_data.startswith("#cloud-config")


def test_a_vnic_without_an_address_asks_for_one() -> None:
    found = plan.seed(vm(vnics=[VnicSpec(network=LAN, mac="52:54:00:00:00:01")]), {LAN: network()})
    assert json.loads(found.network_config)["ethernets"]["eth0"]["dhcp4"] is True


def test_a_vnic_has_a_tap_of_its_own_within_the_kernels_limit() -> None:
    card = launch().vnics[0]
    assert card.tap == f"sv{VM[:10]}-0"
    assert len(card.tap) <= 15
    assert [str(ip) for ip in card.ips] == ["10.77.0.100/24"]


def test_a_disk_of_a_local_pool_is_a_file_and_one_of_an_exported_pool_a_session() -> None:
    local, exported = launch(disks=[disk(ExportKind.NONE), disk(ExportKind.ISCSI)]).disks
    assert isinstance(local.source, FileDisk)
    assert (local.index, local.source.pool, local.serial) == (0, "c" * 12, "d" * 12)
    assert isinstance(exported.source, IscsiDisk)
    assert (exported.index, exported.source.portal, exported.source.lun) == (1, "10.78.0.11:3260", 1)


def test_two_epochs_differ_in_initiator_user_and_password_alone() -> None:
    first = launch(disks=[disk(ExportKind.ISCSI)], epoch=1)
    second = launch(disks=[disk(ExportKind.ISCSI)], epoch=2)
    one, two = first.disks[0].source, second.disks[0].source
    assert isinstance(one, IscsiDisk)
    assert isinstance(two, IscsiDisk)
    for field in ("initiator", "user", "password"):
        assert getattr(one, field) != getattr(two, field)
    accounts = {"initiator": two.initiator, "user": two.user, "password": two.password}
    equalized = first.disks[0].model_copy(update={"source": one.model_copy(update=accounts)})
    assert first.model_copy(update={"disks": [equalized]}) == second


def test_passwords_depend_on_secret_vm_epoch_and_host_and_are_never_shown() -> None:
    rights = [
        plan.admission(SECRET, VM, 1, H1),
        plan.admission(SECRET, VM, 2, H1),
        plan.admission(SECRET, VM, 1, HostName("h2")),
        plan.admission(b"other", VM, 1, H1),
        plan.admission(SECRET, VmId("b" * 12), 1, H1),
    ]
    passwords = {right.password.get_secret_value() for right in rights}
    assert len(passwords) == 5
    assert len({(right.initiator, right.user) for right in rights}) == 4
    assert plan.admission(SECRET, VM, 1, H1).password == rights[0].password
    found = launch(disks=[disk(ExportKind.ISCSI)])
    for password in passwords:
        assert 12 <= len(password) <= 32
        for text in (repr(rights), str(rights), repr(found), str(found), found.model_dump_json()):
            assert password not in text


@pytest.mark.parametrize(("cpus", "most"), [(1, 4), (2, 8), (16, 64), (32, 64), (100, 100)])
def test_vcpus_may_be_plugged_in_up_to_a_bound(cpus: int, most: int) -> None:
    assert launch(of=vm(cpus=cpus)).max_cpus == most


@pytest.mark.parametrize(("cpus", "pinned", "most"), [(2, 4, 4), (4, 4, 4), (8, 4, 32), (1, 32, 32)])
def test_the_room_for_vcpus_stays_as_it_was_pinned_while_they_fit(cpus: int, pinned: int, most: int) -> None:
    assert launch(of=vm(cpus=cpus, max_cpus=pinned)).max_cpus == most


def test_the_newest_machine_is_pinned_by_number_not_by_letter() -> None:
    assert plan.pin_machine(MachineKind.Q35, facts()) == "pc-q35-10.0"
    assert plan.pin_machine(MachineKind.MICROVM, facts()) == "microvm"


@pytest.mark.parametrize("kind", list(MachineKind))
def test_a_host_without_the_machine_is_refused(kind: MachineKind) -> None:
    with pytest.raises(UnsupportedError) as caught:
        plan.pin_machine(kind, facts(machine_types=["q35"]))
    assert caught.value.info.field == "spec.machine"


@pytest.mark.parametrize(
    ("machine", "here", "source", "field"),
    [
        ("pc-q35-11.0", {}, None, "spec.machine_type"),
        ("microvm", {"qemu_version": "10.0.0"}, {"qemu_version": "7.2.0"}, "spec.machine"),
        ("pc-q35-7.2", {"accel": "tcg"}, {"accel": "kvm"}, "to"),
        ("pc-q35-7.2", {"qemu_version": "7.2.19"}, {"qemu_version": "10.0.2"}, "to"),
        ("pc-q35-7.2", {"accel": "kvm", "cpu_model": "new"}, {"accel": "kvm", "cpu_model": "old"}, "to"),
        ("pc-q35-7.2", {"accel": "kvm", "cpu_flags": ["fpu"]}, {"accel": "kvm", "cpu_flags": ["avx", "fpu"]}, "to"),
    ],
)
def test_what_cannot_run_there_is_refused_with_a_remedy(
    machine: str, here: dict[str, Any], source: dict[str, Any] | None, field: str
) -> None:
    with pytest.raises(ConflictError) as caught:
        plan.check_machine(machine, facts(**here), None if source is None else facts(**source))
    assert caught.value.info.field == field
    assert caught.value.info.remedy


def test_what_can_run_there_is_let_through() -> None:
    plan.check_machine("pc-q35-7.2", facts(), None)
    plan.check_machine("pc-q35-7.2", facts(), facts(qemu_version="7.2.0"))
    plan.check_machine("microvm", facts(), facts())
    # Emulated, the processors of the hosts do not matter; on KVM, QEMU's version does not.
    plan.check_machine("pc-q35-7.2", facts(cpu_model="new", cpu_flags=[]), facts(cpu_model="old", cpu_flags=["avx"]))
    on_kvm = {"accel": "kvm", "cpu_model": "same"}
    plan.check_machine("pc-q35-7.2", facts(qemu_version="7.2.19", **on_kvm), facts(**on_kvm))
    plan.check_machine("pc-q35-7.2", facts(cpu_flags=["avx", "fpu"], **on_kvm), facts(cpu_flags=["fpu"], **on_kvm))
    plan.check_machine("pc-q35-7.2", facts(qemu_version="10.0.1"), facts(qemu_version="10.0.2"))


def test_what_a_vm_runs_with_counts_not_what_its_host_has_by_now() -> None:
    plan.check_machine("pc-q35-7.2", facts(accel="tcg"), facts(accel="kvm"), runs_on="tcg")
    with pytest.raises(ConflictError, match="runs with tcg, the destination has kvm"):
        plan.check_machine("pc-q35-7.2", facts(accel="kvm"), facts(accel="kvm"), runs_on="tcg")
