"""Files out of Debian packages, without installing them, through the machine's own apt."""

from __future__ import annotations

import asyncio
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from serai.lib.process import run
from serai.schema.errors import HostError, UnsupportedError

KERNEL = "linux-image-cloud-amd64"
UPDATE = "Run 'apt-get update', and check that the machine's apt sources hold Debian's main section."


async def kernel_package() -> tuple[str, str]:
    """(package, version) of the real kernel behind Debian's cloud kernel metapackage. Raises HostError."""
    shown = await run(["apt-cache", "show", "--no-all-versions", KERNEL], check=False)
    found = re.search(r"^Depends:\s*(linux-image-[^\s,]+)\s*\(=\s*([^)]+)\)", shown.text, re.M)
    if found is None:
        raise HostError(
            f"apt does not know the package {KERNEL}",
            field="image",
            remedy=UPDATE,
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


async def candidates(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package that apt would install now. Raises HostError if it does not know one of them."""
    shown = await run(["apt-cache", "show", "--no-all-versions", *packages], check=False)
    found = dict(re.findall(r"^Package: (\S+)\n(?:(?!Package: ).*\n)*?Version: (\S+)$", shown.text, re.M))
    missing = [package for package in packages if package not in found]
    if missing:
        raise HostError(f"apt does not know {', '.join(missing)}", field="image", remedy=UPDATE)
    return found


async def closure(packages: Sequence[str]) -> list[str]:
    """The packages, all that they may need, and what every Debian system has, sorted. More than gets installed: where
    one of several would do, all are named."""
    essential = await run(["dpkg-query", "-W", "-f", "${Essential} ${Package}\\n"])
    wanted = {"apt", *packages, *re.findall(r"^yes (\S+)$", essential.text, re.M)}
    tree = await run(["apt-cache", "depends", "--recurse", "--important", *sorted(wanted)], check=False)
    # Their names begin a line; those of virtual packages are in angle brackets, of other architectures have a colon.
    return sorted(wanted | set(re.findall(r"^([a-z0-9][^:\s]+)$", tree.text, re.M)))


async def debian_sources() -> tuple[str, list[str]]:
    """(code name, `deb` lines): this machine's own release, and the mirrors of it that its apt uses.

    Only Debian's main section with its updates and security fixes: no backports, no third parties. Raises
    UnsupportedError on another distribution, HostError.
    """
    release = await asyncio.to_thread(platform.freedesktop_os_release)
    suite = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not suite:
        raise UnsupportedError(
            "guests are built from packages on Debian only",
            field="image",
            value=release.get("PRETTY_NAME"),
            remedy="Build the image on a Debian host, or import a cloud image.",
        )
    form = "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
    listed = await run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    lines: dict[str, None] = {}
    for row in listed.text.splitlines():
        origin, name, component, uri = row.split("|")
        if origin == "Debian" and component == "main" and name in {suite, f"{suite}-updates", f"{suite}-security"}:
            lines[f"deb {uri} {name} main"] = None
    if not any(f" {suite} " in line for line in lines):
        raise HostError(f"apt has no package lists of Debian {suite}", field="image", remedy=UPDATE)
    return suite, list(lines)
