"""The other end of an export: a volume opened as QEMU opens it, with the same library (libiscsi), names and secrets."""

from __future__ import annotations

from serai.lib.process import Completed, run
from serai.schema.errors import UnavailableError
from serai.schema.launch import IscsiDisk

LOGIN_TIMEOUT = 20.0
"""Seconds for connecting, logging in and the commands; on a quiet network it is some 10 ms."""


def qemu_io_argv(disk: IscsiDisk, secret_file: str) -> list[str]:
    """Return the command line of a qemu-io that opens the disk; `secret_file` holds the CHAP secret alone."""
    options = {
        "driver": "raw",
        "file.driver": "iscsi",
        "file.transport": "tcp",
        "file.portal": disk.portal,
        "file.target": disk.target,
        "file.lun": disk.lun,
        "file.initiator-name": disk.initiator,
        "file.user": disk.user,
        "file.password-secret": "chap",
    }
    image = ",".join(f"{key}={value}" for key, value in options.items())
    return ["qemu-io", "--object", f"secret,id=chap,file={secret_file}", "--image-opts", image]


async def qemu_io(disk: IscsiDisk, *commands: str) -> Completed:
    """Log in, carry out qemu-io commands (`read 0 4k`), log out. The return code is 1 for a refused login too."""
    *argv, image = qemu_io_argv(disk, "/dev/stdin")
    orders = [word for command in commands for word in ("-c", command)]
    secret = disk.password.get_secret_value().encode()
    return await run([*argv[:-1], *orders, argv[-1], image], input=secret, timeout=LOGIN_TIMEOUT, check=False)


async def check_access(disk: IscsiDisk) -> None:
    """Read the first sector of a disk; raises UnavailableError with the target's or the network's reason."""
    done = await qemu_io(disk, "read 0 512")
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise UnavailableError(
            f"volume {disk.volume} cannot be opened over iSCSI: {said.removeprefix('qemu-io: ')}",
            field="portal",
            value=disk.portal,
            remedy="See that the target's host is up, its storage link too, and that this VM is admitted.",
        )
