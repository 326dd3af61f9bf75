"""What tgtd says, as text, and the layout of what we say to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.drivers.storage.base import Session
from serai.drivers.storage.tgt_socket import (
    MOST_PARAMETERS,
    REQUEST,
    RESPONSE,
    Mode,
    Op,
    Target,
    TgtError,
    TgtSocket,
    parse_sessions,
    parse_targets,
)
from serai.schema.errors import UnavailableError

TARGETS = """\
Target 1: iqn.2026-01.io.serai:vol.0123456789ab
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 2
            Initiator: iqn.2026-01.io.serai:vm.1 alias: none
            Connection: 0
                IP Address: 127.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            Backing store path: None
            Backing store flags: 
        LUN: 1
            Type: disk
            Backing store type: rdwr
            Backing store path: /var/lib/serai/pools/my pool/0123456789ab.raw
            Backing store flags: 
    Account information:
        serai-guard
        vm-1
    ACL information:
        iqn.2026-01.io.serai:vm.1
        iqn.2026-01.io.serai:vm.2
Target 12: iqn.2026-01.io.serai:vol.bare
    System information:
        Driver: iscsi
    LUN information:
        LUN: 0
            Backing store path: None
    Account information:
    ACL information:
"""  # noqa: W291 - the daemon's own blanks

CONNECTIONS = """\
Session: 3
    Connection: 0
        Initiator: iqn.2026-01.io.serai:vm.2
        IP Address: 10.78.0.12
Session: 2
    Connection: 0
        Initiator: iqn.2026-01.io.serai:vm.1
        IP Address: 10.78.0.11
Session: 2
    Connection: 1
        Initiator: iqn.2026-01.io.serai:vm.1
        IP Address: 10.78.0.11
"""


def test_targets_are_read_with_their_units_accounts_and_initiators() -> None:
    assert parse_targets(TARGETS) == [
        Target(
            tid=1,
            name="iqn.2026-01.io.serai:vol.0123456789ab",
            luns={1: "/var/lib/serai/pools/my pool/0123456789ab.raw"},
            accounts=("serai-guard", "vm-1"),
            initiators=("iqn.2026-01.io.serai:vm.1", "iqn.2026-01.io.serai:vm.2"),
        ),
        Target(tid=12, name="iqn.2026-01.io.serai:vol.bare"),
    ]
    assert parse_targets("") == []


def test_connections_are_gathered_by_session() -> None:
    assert parse_sessions(CONNECTIONS) == [
        Session("iqn.2026-01.io.serai:vm.2", 3, (0,), "10.78.0.12"),
        Session("iqn.2026-01.io.serai:vm.1", 2, (0, 1), "10.78.0.11"),
    ]
    assert parse_sessions("") == []


def test_a_closing_connection_has_no_address_any_more() -> None:
    text = "".join(f"Session: {n}\n    Connection: 0\n        Initiator: iqn.x:{n}\n        \n" for n in (2, 3))
    assert [(session.session_id, session.address) for session in parse_sessions(text)] == [(2, ""), (3, "")]


def test_the_records_have_the_sizes_that_the_daemon_reads() -> None:
    assert (REQUEST.size, RESPONSE.size) == (120, 8)


def test_an_unknown_number_is_still_an_error() -> None:
    assert "error 99" in str(TgtError("try", 99))
    assert "NO_TARGET" in str(TgtError("try", 4))


async def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    tgt = TgtSocket(tmp_path / "control.0")
    assert await tgt.peer() is None
    with pytest.raises(UnavailableError) as caught:
        await tgt.targets()
    assert caught.value.info.field == "socket"


async def test_too_long_a_request_is_never_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than tgtd takes"):
        await TgtSocket(tmp_path / "none").request("x", Mode.TARGET, Op.BIND, "a" * MOST_PARAMETERS)
