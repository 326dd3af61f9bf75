"""The bus: its subjects, and who may use which.

The second token of a subject is the host that it belongs to: that host alone listens there (commands, questions) or
speaks there (reports, progress, tickets), and no other host can do either. A VM is addressed on the host that holds its
lease. Why so: docs/adr/0005-subjects-belong-to-hosts.md.

Identities are `controller`, `host.<name>` and `client.<name>`; nats-server maps the certificate's name to permissions.
"""

from __future__ import annotations


class Subjects:
    """Every subject there is. The second token is the host that it belongs to: it alone listens or speaks there."""

    @staticmethod
    def host_command(host: str) -> str:
        return f"host.{host}.command"

    @staticmethod
    def vm_command(host: str, vm: str) -> str:
        """Answered by the VM's agent while that host holds the VM's lease."""
        return f"host.{host}.vm.{vm}.command"

    @staticmethod
    def host_report(host: str) -> str:
        return f"host.{host}.report"

    @staticmethod
    def vm_report(host: str, vm: str) -> str:
        """A host's word on a VM that it has. The host's name is in it so that no other host may publish it."""
        return f"host.{host}.vm.{vm}.report"

    @staticmethod
    def hello(host: str) -> str:
        return f"host.{host}.hello"

    @staticmethod
    def progress(host: str, request: str) -> str:
        return f"host.{host}.progress.{request}"

    @staticmethod
    def redeem(host: str) -> str:
        """Asked by the host that a ticket names as its server."""
        return f"host.{host}.ticket.redeem"

    @staticmethod
    def certificate(host: str) -> str:
        """Asked by a host of the controller, which certifies it for its own identities."""
        return f"host.{host}.certificate"

    @staticmethod
    def verdict(host: str, source: str) -> str:
        """Asked by a migration's source of the destination: committed or abandoned? Answered from the journal.

        The one subject on which a host speaks to another; with its own name in it.
        """
        return f"host.{host}.verdict.{source}"

    @staticmethod
    def host_of(subject: str) -> str:
        return subject.split(".")[1]

    @staticmethod
    def vm_of(subject: str) -> str:
        """The VM of a `vm_command` or `vm_report` subject."""
        return subject.split(".")[3]

    @staticmethod
    def asker_of(subject: str) -> str:
        """The source of a `verdict` subject."""
        return subject.split(".")[3]


def host_permissions(host: str) -> tuple[list[str], list[str]]:
    """(publish, subscribe) for one host's identity: what is its own. Replies are the bus's matter."""
    own = f"host.{host}.>"
    return [own, Subjects.verdict("*", host)], [own]


def controller_permissions() -> tuple[list[str], list[str]]:
    """(publish, subscribe) for the controller's identity."""
    publish = [Subjects.host_command("*"), Subjects.vm_command("*", "*")]
    subscribe = [
        Subjects.hello("*"),
        Subjects.host_report("*"),
        Subjects.vm_report("*", "*"),
        Subjects.progress("*", "*"),
        Subjects.redeem("*"),
        Subjects.certificate("*"),
    ]
    return publish, subscribe
