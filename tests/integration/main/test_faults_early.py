"""Real processes, killed before a migration has sent anything, and cancels there: prepared, and connecting.

How the move is held in these phases is told in `stand.py`. The pool is on h1: the move is one of the other two hosts',
so that its frozen agent is missed by nobody else.
"""

from __future__ import annotations

import os
import signal

from tests.support.lab import Lab
from tests.support.looking import until

from .stand import stand


async def test_destination_qemu_killed_when_all_is_prepared(lab: Lab) -> None:
    async with stand(lab, "h2", "h3") as move:
        await move.prepare()
        assert move.claim() == "offered"
        os.kill(move.destination, signal.SIGKILL)
        await until(lambda: move.claim() == "abandoned", "the offer to be turned down")
        move.thaw_all()
        await move.stays(reason="signal 9")


async def test_cancelled_when_all_is_prepared(lab: Lab) -> None:
    async with stand(lab, "h2", "h3") as move:
        await move.prepare()
        await move.cancel()
        move.thaw_all()
        await move.is_cancelled()


async def test_destination_qemu_killed_while_the_source_connects(lab: Lab) -> None:
    async with stand(lab, "h2", "h3") as move:
        await move.connect()
        assert move.claim() == "offered"
        os.kill(move.destination, signal.SIGKILL)
        await move.stays(reason="signal 9")


async def test_cancelled_while_the_source_connects(lab: Lab) -> None:
    async with stand(lab, "h2", "h3") as move:
        await move.connect()
        await move.cancel()
        await move.is_cancelled()
