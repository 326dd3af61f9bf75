"""Where a host keeps its things.

Two roots: what must outlive a reboot (`state`) and what must not (`run`). Everything else is named from them here and
nowhere else, so that a test or a second agent on one machine is only another `HostPaths`.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostPaths:
    """The places of one host agent; plain names, nothing is created by asking for one."""

    state: Path = Path("/var/lib/serai")
    run: Path = Path("/run/serai")

    @property
    def journal(self) -> Path:
        """The host's journal: a file of lines, see host/journal.py."""
        return self.state / "journal"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def pools(self) -> Path:
        """The folder in which `dir` pools live unless told otherwise."""
        return self.state / "pools"

    @property
    def vms(self) -> Path:
        """The folder of the VMs' lasting files."""
        return self.state / "vms"

    @property
    def pki(self) -> Path:
        """The folder of certificates and keys."""
        return self.state / "pki"

    @property
    def qemu_pki(self) -> Path:
        """The folder that QEMU's tls-creds-x509 reads."""
        return self.pki / "qemu"

    @property
    def tgtd(self) -> Path:
        """The folder of the iSCSI target's control socket and records."""
        return self.run / "tgtd"

    def vm_state(self, vm_id: str) -> Path:
        """The lasting folder of one VM (seed, log, firmware variables)."""
        return self.vms / vm_id

    def vm_run(self, vm_id: str) -> Path:
        """The folder of one VM's sockets."""
        return self.run / "vms" / vm_id

    def console_socket(self, vm_id: str) -> Path:
        """One VM's serial console socket."""
        return self.vm_run(vm_id) / "console.sock"
