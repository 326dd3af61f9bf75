"""Files out of Debian packages, without installing them, through the machine's own apt."""

from __future__ import annotations

import os
import re
from pathlib import Path

from serai.lib.process import run
from serai.schema.errors import HostError

KERNEL = "linux-image-cloud-amd64"


async def kernel_package() -> tuple[str, str]:
    """(package, version) of the real kernel behind Debian's cloud kernel metapackage. Raises HostError."""
    shown = await run(["apt-cache", "show", "--no-all-versions", KERNEL], check=False)
    found = re.search(r"^Depends:\s*(linux-image-[^\s,]+)\s*\(=\s*([^)]+)\)", shown.text, re.M)
    if found is None:
        raise HostError(
            f"apt does not know the package {KERNEL}",
            field="image",
            remedy="Run 'apt-get update', and check that the machine's apt sources hold Debian's main section.",
        )
    return found[1], found[2]


async def unpack(package: str, version: str, folder: Path) -> Path:
    """Download a package into `folder` and unpack it beside; returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o755)  # apt downloads as a user of its own  # noqa: S103
    await run(["apt-get", "download", "-q", f"{package}={version}"], cwd=folder, timeout=300)
    (archive,) = folder.glob(f"{package}_*.deb")
    tree = folder / "tree"
    await run(["dpkg-deb", "-x", str(archive), str(tree)], timeout=120)
    archive.unlink()
    return tree


async def module_order(modules: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Module files in the order in which they load: each after those that it depends on. Built-in ones are left out."""
    files = {_module_name(path): path for path in sorted(modules.rglob("*.ko*"))}
    ordered: list[Path] = []

    async def add(name: str) -> None:
        path = files.get(name)
        if path is None or path in ordered:
            return
        depends = await run(["modinfo", "-F", "depends", str(path)])
        for needed in filter(None, depends.text.strip().split(",")):
            await add(needed.replace("-", "_"))
        ordered.append(path)

    for name in wanted:
        await add(name)
    return ordered


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")
