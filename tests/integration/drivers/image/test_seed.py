"""Seeds are what cloud-init's NoCloud looks for: an ISO named CIDATA with three documents, for one pair of eyes."""

from __future__ import annotations

from pathlib import Path

from serai.drivers.image.seed import write_seed
from serai.lib.process import run
from serai.schema.launch import Seed

SEED = Seed(
    user_data="#cloud-config\npassword: geheim — ä\n",
    meta_data='{"instance-id": "abc", "local-hostname": "web1"}\n',
    network_config="version: 2\n",
)


async def read(path: Path, folder: Path) -> dict[str, str]:
    await run(["xorriso", "-osirrox", "on", "-indev", str(path), "-extract", "/", str(folder)])
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


async def test_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "vm" / "seed.iso"
    await write_seed(SEED, path)
    assert await read(path, tmp_path / "read") == {
        "user-data": SEED.user_data,
        "meta-data": SEED.meta_data,
        "network-config": SEED.network_config,
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["seed.iso"]
    volume = path.read_bytes()[16 * 2048 :][40:72]
    assert volume.decode("ascii").rstrip() == "CIDATA"


async def test_written_again_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    await write_seed(SEED, path)
    await write_seed(SEED.model_copy(update={"user_data": "#cloud-config\n{}\n"}), path)
    assert (await read(path, tmp_path / "read"))["user-data"] == "#cloud-config\n{}\n"
