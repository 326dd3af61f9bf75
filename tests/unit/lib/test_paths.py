"""Where a host keeps its things."""

from pathlib import Path

from serai.lib.paths import HostPaths


def test_all_is_below_the_two_roots() -> None:
    paths = HostPaths(state=Path("/s"), run=Path("/r"))
    assert (paths.journal, paths.images, paths.pools) == (Path("/s/journal"), Path("/s/images"), Path("/s/pools"))
    assert (paths.pki, paths.qemu_pki) == (Path("/s/pki"), Path("/s/pki/qemu"))
    assert paths.vm_state("abc") == Path("/s/vms/abc")
    assert paths.console_socket("abc") == Path("/r/vms/abc/console.sock")
    assert paths.tgtd == Path("/r/tgtd")
    assert HostPaths() == HostPaths(Path("/var/lib/serai"), Path("/run/serai"))


def test_socket_names_fit() -> None:
    # A Unix socket's name has 107 bytes at most.
    assert len(str(HostPaths().console_socket("0" * 12))) < 108
