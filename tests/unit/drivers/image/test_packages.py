"""What apt says about this machine's own release."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from serai.drivers.image.packages import KERNEL, candidates, closure, debian_sources, kernel_package, module_order
from serai.schema.errors import HostError, UnsupportedError


async def test_the_kernel_behind_the_metapackage() -> None:
    package, version = await kernel_package()
    assert package.startswith("linux-image-")
    assert package.endswith("cloud-amd64")
    assert (await candidates([KERNEL, package]))[package] == version


async def test_a_package_that_apt_does_not_know() -> None:
    with pytest.raises(HostError, match="no-such-package") as caught:
        await candidates(["busybox-static", "no-such-package"])
    assert "apt-get update" in (caught.value.info.remedy or "")


async def test_what_a_package_needs_counts_too() -> None:
    names = await closure(["openssh-server"])
    # Named, needed by what is named, and part of every system.
    assert {"openssh-server", "libc6", "bash"} <= set(names)
    assert names == sorted(set(names))
    assert set(await candidates(names)) >= set(names)


async def test_the_mirrors_of_this_release_only() -> None:
    suite, sources = await debian_sources()
    assert suite == platform.freedesktop_os_release()["VERSION_CODENAME"]
    words = [line.split() for line in sources]
    assert all(len(word) == 4 and word[0] == "deb" and word[3] == "main" for word in words)
    assert {word[2] for word in words} <= {suite, f"{suite}-updates", f"{suite}-security"}
    assert len(set(sources)) == len(sources)


async def test_another_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "other", "PRETTY_NAME": "Other 1"})
    with pytest.raises(UnsupportedError, match="Debian only"):
        await debian_sources()


async def test_modules_that_are_not_there_are_built_in(tmp_path: Path) -> None:
    assert await module_order(tmp_path, ("virtio_net",)) == []
