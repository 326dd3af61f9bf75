"""script/setup against real apt and dpkg: their files, and what the system says it is, are replaced in a mount
namespace, and the packages come, empty, from a mirror in a folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
SOURCES = "etc/apt/sources.list.d/serai-backports.sources"
PLACES = ("etc/apt", "var/lib/apt", "var/cache/apt", "var/lib/dpkg", "var/log")
BIND = """
set -eu
root=$1; shift
for place in "$@"; do
    [ "$place" != -- ] || break
    mount --bind "$root/$place" "/$place"; shift
done
shift
exec "$@"
"""
OURS, NEWER = "1:7.2+dfsg-7+deb12u15", "1:10.0.2+ds-2~bpo12+1"
APT_CONF = """
APT::Sandbox::User "root";
Acquire::AllowInsecureRepositories "true";
APT::Get::AllowUnauthenticated "true";
"""


PACKAGES = {"qemu-system-x86": True, "qemu-utils": True, "tgt": False, "python3": False}
"""The list of this machine, and whether each is wanted from backports: short, as dpkg takes its time with each."""


@dataclass
class Machine:
    """A Debian with nothing installed, as apt, dpkg and script/setup see it."""

    root: Path

    @property
    def mirror(self) -> str:
        """What apt's sources call the mirror."""
        return f"file:{self.root}/mirror"

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def publish(self, suite: str, packages: dict[str, str]) -> None:
        """Put packages, by name and version, into a suite of the mirror."""
        index = ""
        (self.root / "mirror").mkdir(exist_ok=True)
        for name, version in packages.items():
            control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x\nDescription: x\n"
            file = self.write(f"tree/{suite}/{name}/DEBIAN/control", control)
            archive = self.root / "mirror" / f"{name}_{suite}.deb"
            subprocess.run(
                ["dpkg-deb", "-Znone", "--build", str(file.parents[1]), str(archive)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            content = archive.read_bytes()
            index += control + f"Filename: {archive.name}\nSize: {len(content)}\nSHA256: {_sha256(content)}\n\n"
        self.write(f"mirror/dists/{suite}/main/binary-amd64/Packages", index)
        late = "NotAutomatic: yes\nButAutomaticUpgrades: yes\n" if suite.endswith("backports") else ""
        digest = f" {_sha256(index.encode())} {len(index)} main/binary-amd64/Packages\n"
        release = (
            f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64 all\nComponents: main\n{late}SHA256:\n{digest}"
        )
        self.write(f"mirror/dists/{suite}/Release", release)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine."""
        places = [*PLACES, "etc/os-release"]
        inside = ["unshare", "--mount", "sh", "-c", BIND, "sh", str(self.root), *places, "--", *argv]
        return subprocess.run(inside, capture_output=True, text=True, timeout=120, check=False)

    def setup(self) -> subprocess.CompletedProcess[str]:
        """Run script/setup."""
        return self.run(str(self.root / "clone/script/setup"))

    @property
    def installed(self) -> dict[str, str]:
        """The version of each installed package."""
        done = self.run("dpkg-query", "-W", "-f", "${Package} ${Version}\\n")
        return dict(line.split() for line in done.stdout.splitlines())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of bookworm and its backports."""
    machine = Machine(tmp_path_factory.mktemp("published"))
    machine.publish("bookworm", {name: OURS if late else "1" for name, late in PACKAGES.items()})
    machine.publish("bookworm-backports", {name: NEWER for name, late in PACKAGES.items() if late})
    return machine.root / "mirror"


@pytest.fixture
def machine(tmp_path: Path, published: Path) -> Machine:
    """A machine whose apt knows bookworm, and backports only once somebody adds them."""
    made = Machine(tmp_path)
    for place in PLACES:
        (tmp_path / place).mkdir(parents=True)
    made.write("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")
    made.write("etc/apt/apt.conf.d/test", APT_CONF)
    made.write(
        "etc/apt/sources.list.d/debian.sources", f"Types: deb\nURIs: {made.mirror}\nSuites: bookworm\nComponents: main"
    )
    made.write("etc/apt/preferences.d/none", "")
    made.write("var/lib/dpkg/status", "")
    shutil.copytree(published, tmp_path / "mirror")
    shutil.copytree(TOP / "packaging", tmp_path / "clone/packaging")
    shutil.copy(TOP / "pyproject.toml", tmp_path / "clone")
    lines = [f"{name} backports  # why" if late else name for name, late in PACKAGES.items()]
    made.write("clone/packaging/apt-packages.txt", "\n".join(["# packages", "", *lines, ""]))
    (tmp_path / "clone/script").mkdir()
    shutil.copy(TOP / "script/setup", tmp_path / "clone/script")
    # The Python packages are not this file's concern.
    made.write("clone/.venv/bin/python", "#!/bin/sh\n").chmod(0o755)
    return made


def test_qemu_comes_from_backports_and_a_repeat_does_nothing(machine: Machine) -> None:
    first = machine.setup()
    assert first.returncode == 0, first.stderr
    assert "adding bookworm-backports" in first.stderr
    assert machine.installed == {name: NEWER if late else "1" for name, late in PACKAGES.items()}
    assert (machine.root / SOURCES).read_text().splitlines()[1:3] == [
        f"URIs: {machine.mirror}",
        "Suites: bookworm-backports",
    ]
    again = machine.setup()
    assert (again.returncode, again.stdout + again.stderr) == (0, "")


@pytest.mark.parametrize("damage", ["absent", "empty"])
def test_a_mirror_without_newer_qemu_leaves_the_distributions_and_apt_works(machine: Machine, damage: str) -> None:
    if damage == "absent":
        shutil.rmtree(machine.root / "mirror/dists/bookworm-backports")
    else:
        machine.publish("bookworm-backports", {})
    first = machine.setup()
    assert first.returncode == 0, first.stderr
    assert f"QEMU is the distribution's own, {OURS}" in first.stderr
    assert machine.installed["qemu-utils"] == OURS
    assert not (machine.root / SOURCES).exists()
    assert machine.run("apt-get", "update").returncode == 0
    again = machine.setup()
    assert (again.returncode, again.stdout + again.stderr) == (0, "")
    # Another mirror is another chance.
    machine.write("etc/apt/sources.list", f"deb file://{machine.root}/mirror bookworm main")
    machine.publish("bookworm-backports", {name: NEWER for name, late in PACKAGES.items() if late})
    assert machine.setup().returncode == 0
    assert machine.installed["qemu-utils"] == NEWER


def test_without_a_known_mirror_it_says_so(machine: Machine) -> None:
    file = machine.root / "etc/apt/sources.list.d/debian.sources"
    (machine.root / "mirror/dists/stable").symlink_to("bookworm")
    file.write_text(file.read_text().replace("bookworm", "stable"))
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert "apt's sources name no mirror of bookworm" in done.stderr
    assert machine.installed["qemu-utils"] == OURS
    assert (machine.setup().stderr) == ""


def test_backports_that_are_there_already_are_not_added_again(machine: Machine) -> None:
    line = f"deb [trusted=yes] {machine.mirror} bookworm-backports main\n"
    machine.write("etc/apt/sources.list.d/own.list", line)
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert not (machine.root / SOURCES).exists()
    assert machine.installed["qemu-utils"] == NEWER


def test_a_derivative_takes_its_own_qemu(machine: Machine) -> None:
    machine.write("etc/os-release", "ID=other\nVERSION_CODENAME=noble\n")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert machine.installed["qemu-utils"] == OURS
    assert not (machine.root / SOURCES).exists()


def test_an_apt_that_is_broken_otherwise_ends_with_one_sentence(machine: Machine) -> None:
    machine.write("etc/apt/sources.list", "deb file:/no/such/mirror bookworm main\n")
    done = machine.setup()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "setup: apt-get update failed: fix what its messages above say, then run this again"
    )
    assert machine.installed == {}


def test_a_qemu_below_the_floor_is_refused(machine: Machine) -> None:
    machine.write("etc/os-release", "VERSION_CODENAME=old\n")
    machine.publish("bookworm", {name: "1:6.2+dfsg-2" if late else "1" for name, late in PACKAGES.items()})
    done = machine.setup()
    assert done.returncode == 1
    assert "QEMU 1:6.2+dfsg-2 is too old: Serai needs 7.2 or newer" in done.stderr
