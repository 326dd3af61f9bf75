"""`serai vm console|ssh`: getting into VMs."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serai.app.cli import complete
from serai.app.cli.options import VmArgument
from serai.app.cli.output import note
from serai.app.cli.session import chosen, run

if TYPE_CHECKING:
    from pathlib import Path

    from websockets.asyncio.client import ClientConnection

    from serai.client.context import Context
    from serai.client.http import Client

ESCAPE = b"\x1d"
"""Ctrl-]: leaves the console, as telnet's does."""
CHUNK = 4096
USERS = {"debian": "debian"}
"""The user that cloud-init makes in images of our own recipes."""

SshTarget = Annotated[str, typer.Argument(metavar="[USER@]VM", help="The VM.", autocompletion=complete.ssh_targets)]
SshIdentity = Annotated[
    str | None, typer.Option("--identity", "-i", metavar="FILE", help="The private key; else what ssh finds itself.")
]
SshCommand = Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND", help="What to run there.")]


def add(app: typer.Typer) -> None:
    """Put these verbs under `vm`."""
    app.command()(console)
    app.command()(ssh)


def console(ctx: typer.Context, vm: VmArgument) -> None:
    """Join a VM's serial console. Ctrl-] leaves it; the VM does not notice.

    \b
    Examples:
      serai vm console web1
      timeout 5 serai vm console web1 < /dev/null
    """
    run(ctx, lambda client: _console(client, vm))


async def _console(client: Client, vm: str) -> None:
    from serai.client.console import console as join

    async with join(client, vm) as connection:
        if sys.stdin.isatty():
            note(f"Console of {vm}. Leave it with Ctrl-].")
        with RawTerminal(sys.stdin.fileno()):
            typing = asyncio.create_task(_type(connection), name="console input")
            showing = asyncio.create_task(_show(connection), name="console output")
            try:
                await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (typing, showing):
                    task.cancel()
                results = await asyncio.gather(typing, showing, return_exceptions=True)
        why = connection.close_reason
    note(f"\nThe console of {vm} has ended: {why}." if why else f"\nLeft the console of {vm}.")
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _type(connection: ClientConnection) -> None:
    """Send what is typed until Ctrl-]. At the end of a file there is nothing more to send: go on showing."""
    while True:
        data = await _read(sys.stdin.fileno())
        if not data:
            await asyncio.Event().wait()
        head, escaped, _ = data.partition(ESCAPE)
        if head:
            await connection.send(head)
        if escaped:
            return


async def _show(connection: ClientConnection) -> None:
    async for message in connection:
        data = message.encode() if isinstance(message, str) else bytes(message)
        await asyncio.to_thread(_write_all, data)


def _write_all(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def _read(descriptor: int) -> bytes:
    """Some bytes from a terminal or pipe; a plain file is always readable."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return await asyncio.to_thread(os.read, descriptor, CHUNK)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, CHUNK)


class RawTerminal:
    """A terminal that hands over every key as it is; as it was before on leaving. Does nothing for pipes and files."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> None:
        import termios
        import tty

        if os.isatty(self._descriptor):
            self._before = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor)

    def __exit__(self, *_: object) -> None:
        import termios

        if self._before is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


def ssh(ctx: typer.Context, target: SshTarget, command: SshCommand = None, identity: SshIdentity = None) -> None:
    """Log in to a VM, or run a command there. Its host key is remembered by the VM's id, so a move changes nothing.

    Without USER@ it is 'debian' where the VM's image is one that 'serai image build debian' made; else whom ssh takes
    by itself, which is you.

    \b
    Examples:
      serai vm ssh debian@web1
      serai vm ssh -i ~/.ssh/web debian@web1 -- uname -a
    """
    from serai.client.context import config_file
    from serai.lib.process import become

    user, _, name = target.rpartition("@")
    vm, usual = run(ctx, lambda client: _who(client, name))
    check_runs(vm)
    if not user and usual:
        user = usual
        note(f"Logging in as {user}; another user: serai vm ssh USER@{name}")
    _, context = chosen(ctx)
    folder = config_file().parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    argv = ssh_argv(vm, user, command or [], context, folder, identity)
    become(argv, package="util-linux" if argv[0] == "nsenter" else "openssh-client")


async def _who(client: Client, name: str) -> tuple[Any, str]:
    """The VM, and the user that its image is known to have; empty if none is known."""
    from serai.schema.errors import NotFoundError

    vm = await client.call("vm.show", name)
    if vm.spec.image is None:
        return vm, ""
    try:
        image = await client.call("image.show", vm.spec.image)
    except NotFoundError:
        return vm, ""
    return vm, USERS.get(image.spec.recipe or "", "")


def check_runs(vm: Any) -> None:
    """Raises ConflictError for a VM whose guest cannot answer now; of one on a silent host nothing is known."""
    from serai.schema.errors import ConflictError
    from serai.schema.vm import VmState

    remedies = {
        **dict.fromkeys((VmState.DEFINED, VmState.STOPPED, VmState.CRASHED), f"Start it: serai vm start {vm.name}."),
        VmState.PAUSED: f"Let it go on: serai vm resume {vm.name}.",
    }
    if vm.status.state in remedies:
        raise ConflictError(
            f"VM {vm.name} is {vm.status.state}: nobody answers there",
            field="state",
            value=vm.status.state,
            remedy=remedies[vm.status.state],
        )


def ssh_argv(
    vm: Any, user: str, command: list[str], context: Context, folder: Path, identity: str | None = None
) -> list[str]:
    """The command line that reaches a VM by the context's way. Raises UnavailableError if it has no address."""
    from serai.schema.errors import UnavailableError

    addresses = [str(vnic.ip) for vnic in vm.spec.vnics if vnic.ip] or list(vm.status.addresses)
    if not addresses:
        raise UnavailableError(
            "the VM has no known address",
            field="vm",
            value=vm.name,
            remedy=f"Give it a VNIC (serai vm edit --add-network), or use: serai vm console {vm.name}.",
        )
    way = ["nsenter", f"--net=/run/netns/{context.via['netns']}"] if "netns" in context.via else []
    options = {
        "HostKeyAlias": f"serai-{vm.id}",
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "StrictHostKeyChecking": "accept-new",
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    destination = addresses[0].partition("/")[0]
    return [
        *way,
        "ssh",
        *flags,
        *(["-i", identity] if identity else []),
        f"{user}@{destination}" if user else destination,
        *(["--", *command] if command else []),
    ]
