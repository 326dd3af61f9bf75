"""The Debian guest, booted as Serai boots it: BIOS, GRUB, systemd, cloud-init with a seed, and a way in by SSH."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.integration.drivers.image.conftest import CACHE, DEADLINE, MAC, OURS, THEIRS, VNIC, Ground, gone

from serai.core.launch import seed
from serai.drivers.image.base import read_manifest
from serai.drivers.image.cache import ensure_image
from serai.drivers.image.mmdebstrap import PACKAGES, DebianBuilder
from serai.drivers.image.seed import write_seed
from serai.lib import namespace
from serai.lib.ids import new_id
from serai.lib.process import ProcessError, run
from serai.schema.attach import Disk, FileDisk, Launch, Seed
from serai.schema.errors import UnavailableError
from serai.schema.image import ImageKind
from serai.schema.network import Network, NetworkSpec, NetworkStatus
from serai.schema.vm import CloudInit, Vm, VmSpec, VmStatus, VnicSpec

GIB = 1 << 30
USER_DATA = "#cloud-config\nwrite_files:\n- path: /etc/from-user-data\n  content: it was read\n"
LOGIN_ATTEMPT = 20.0
DNS = IPv4Address("10.77.0.53")


async def key(ground: Ground) -> str:
    """A key pair in `key`; returns its public half."""
    file = ground.folder / "key"
    await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)])
    return file.with_suffix(".pub").read_text(encoding="ascii").strip()


def wanted(public_key: str) -> tuple[Vm, Network]:
    """What the controller would have: a VM on a network."""
    now = datetime.now(tz=UTC)
    network = NetworkSpec(
        bridge="br-lan", subnet=IPv4Network("10.77.0.0/24"), gateway=IPv4Address(OURS), nameservers=[DNS]
    )
    vnic = VnicSpec(network="lan", mac=MAC, ip=IPv4Address(THEIRS))
    spec = VmSpec(vnics=[vnic], cloud_init=CloudInit(ssh_keys=[public_key], user_data=USER_DATA))
    return (
        Vm(name="web1", id=new_id(), generation=1, created=now, spec=spec, status=VmStatus()),
        Network(name="lan", id=new_id(), generation=1, created=now, spec=network, status=NetworkStatus()),
    )


async def launched(ground: Ground, vm: Vm, disk: Disk, documents: Seed) -> Launch:
    """What QEMU is started with."""
    return Launch(
        vm=vm.id,
        name=vm.name,
        generation=1,
        machine=await ground.q35(),
        accel="tcg",
        cpus=2,
        max_cpus=2,
        memory=GIB,
        uuid=str(uuid.uuid4()),
        disks=[disk],
        vnics=[VNIC],
        seed=documents,
    )


async def ssh(ground: Ground, command: str, timeout: float = DEADLINE) -> str:
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=5")
    done = await run(
        [
            *namespace.enter_argv(ground.netns),
            *("ssh", "-q", "-F", "none", "-i", str(ground.folder / "key")),
            *(word for option in options for word in ("-o", option)),
            f"debian@{THEIRS}",
            command,
        ],
        timeout=timeout,
    )
    return done.text.strip()


async def logged_in(ground: Ground) -> None:
    """Wait until cloud-init has let the key in."""
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await ssh(ground, "true", timeout=LOGIN_ATTEMPT)
                    return
                except ProcessError:
                    await asyncio.sleep(1)
    except TimeoutError:
        pytest.fail(f"no login; the console's last words: {ground.console()[-2000:]}")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_debian_guest(ground: Ground) -> None:
    image = await ensure_image(DebianBuilder(), CACHE)
    manifest = read_manifest(image)
    assert (manifest.kind, manifest.format, manifest.cloud_init) == (ImageKind.DISK, "qcow2", True)
    assert set(PACKAGES) <= set(manifest.packages)

    vm, network = wanted(await key(ground))
    documents = seed(vm, {"lan": network})
    await write_seed(documents, ground.folder / "seed.iso")
    file = ground.folder / "disk.raw"
    await run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image / "disk.qcow2"), str(file)])
    await run(["qemu-img", "resize", "-q", "-f", "raw", str(file), str(4 * GIB)])
    disk = Disk(index=0, name="root", size=4 * GIB, source=FileDisk(pool=new_id(), volume=new_id()), serial="root")
    launch = await launched(ground, vm, disk, documents)
    machine = await ground.start(launch, disks={0: file}, seed=ground.folder / "seed.iso")
    await logged_in(ground)

    # One login for all of it: a login takes a second where there is no KVM.
    lines = (
        "sudo cloud-init status --wait | tail -n 1",
        "hostname",
        "cat /etc/from-user-data; echo",
        "df --output=size -B1 / | tail -n 1",
        "ip -4 -o addr show eth0 | awk '{print $4}'",
        "ip route show default | awk '{print $3}'",
        "resolvectl dns eth0 | awk '{print $NF}'",
        "sudo awk -F: '$1 == \"root\" {print substr($2, 1, 1)}' /etc/shadow",
        "sudo systemctl is-active serial-getty@ttyS0",
        "systemctl --failed --quiet --no-legend | wc -l",
        "ls /etc/ssh/ssh_host_*_key | wc -l",
    )
    status, host, written, size, address, gateway, dns, root, getty, failed, keys = (
        await ssh(ground, "; ".join(lines))
    ).splitlines()
    assert status.split()[-1] == "done"
    assert (host, written) == ("web1", "it was read")
    assert int(size) > 3.5 * GIB
    assert (address, gateway, dns) == (f"{THEIRS}/24", OURS, str(DNS))
    assert (root, getty, failed, keys) == ("!", "active", "0", "2")

    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                assert await machine.guest("guest-ping", {}, timeout=10) == {}
                break
            except UnavailableError:
                await asyncio.sleep(0.5)
    await machine.powerdown()
    assert await gone(machine) == "guest-shutdown"


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_builds_are_the_same_image(tmp_path: Path) -> None:
    builder = DebianBuilder()
    kept = read_manifest(await ensure_image(builder, CACHE))
    built = await builder.build(tmp_path, lambda _phase, _fraction: None)
    assert built == kept
