"""What a VM's QEMU gets from its host, and that none of it is left if no QEMU took it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.host.ground import VM, make_launch

from serai.drivers.network.fake import FakeNetwork
from serai.host.network.ports import VnicPorts
from serai.host.vm.resources import VmResources
from serai.lib.paths import HostPaths
from serai.schema.errors import NotFoundError
from serai.schema.ids import ImageId, PoolId, VolumeId
from serai.schema.launch import Disk, FileDisk, KernelBoot, Seed

SEED = Seed(user_data="#cloud-config\n", meta_data="{}", network_config="")
FILE = Disk(index=1, name="data", size=1 << 20, source=FileDisk(pool=PoolId("1" * 12), volume=VolumeId("2" * 12)))
LAUNCH = make_launch(seed=SEED, boot=KernelBoot(image=ImageId("3" * 12)), disks=[*make_launch().disks, FILE])


class Place:
    """A host's folders, with an image that may be gone."""

    def __init__(self, folder: Path) -> None:
        self.paths = HostPaths(state=folder / "state", run=folder / "run")
        self.network = FakeNetwork()
        self.image_there = True
        self.resources = VmResources(
            paths=self.paths,
            ports=VnicPorts("h1", self.network),
            disk_path=lambda pool, volume: folder / pool / volume,
            image_file=self._image_file,
            write_seed=self._write_seed,
            qemu_user=None,
        )

    async def _image_file(self, image: str, name: str) -> Path:
        if not self.image_there:
            raise NotFoundError("the image is gone", field="image", value=image)
        return Path("/images") / image / name

    async def _write_seed(self, seed: Seed, file: Path) -> None:
        file.parent.mkdir(parents=True)
        file.write_text(seed.user_data, encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_all_that_qemu_needs_is_placed(place: Place, tmp_path: Path) -> None:
    async with place.resources.place(LAUNCH, open_ports=False) as resources:
        assert place.network.ports == {LAUNCH.vnics[0].tap: False}
        assert resources.disks == {1: tmp_path / FILE.source.pool / FILE.source.volume}  # type: ignore[union-attr] # a file
        assert resources.kernel == Path("/images") / ("3" * 12) / "vmlinuz"
        assert resources.seed == place.paths.vm_state(VM) / "seed.iso"
        assert (resources.run_dir, resources.tls_dir) == (place.paths.vm_run(VM), None)
    # This one's taps go with their descriptors: no QEMU took them.
    assert place.network.ports == {}


async def test_a_part_that_fails_takes_the_taps_with_it(place: Place) -> None:
    place.image_there = False
    with pytest.raises(NotFoundError, match="the image is gone"):
        async with place.resources.place(LAUNCH, open_ports=True):
            pytest.fail("there is nothing to start from")
    assert place.network.ports == {}


async def test_folders_of_a_vm_are_removed(place: Place) -> None:
    folders = (place.paths.vm_run(VM), place.paths.vm_state(VM))
    for _ in range(2):
        for folder in folders:
            (folder / "inside").mkdir(parents=True)
        await place.resources.remove(VM)
        assert not any(folder.exists() for folder in folders)
    await place.resources.remove(VM)
