"""What is being made, and given up."""

import asyncio
import threading

import pytest

from serai.lib.creations import Creations, to_thread_shielded
from serai.schema.errors import ConflictError


async def forever(begun: asyncio.Event, ended: list[str]) -> None:
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("made")


async def test_a_deletion_ends_what_is_being_made_and_what_waits_to_be() -> None:
    creations, begun, ended = Creations("volume"), asyncio.Event(), list[str]()
    tasks = [asyncio.create_task(creations.create("v", lambda: forever(begun, ended))) for _ in range(3)]
    other = asyncio.create_task(creations.create("w", lambda: forever(asyncio.Event(), ended)))
    await begun.wait()
    async with creations.deleting("v"):
        ended.append("dropped")
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [ConflictError] * 3
    assert ended == ["made", "dropped"]
    assert not other.done()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    async with creations.lock("v"):
        assert creations.lock("v").locked()


async def test_after_a_deletion_it_can_be_made_again() -> None:
    creations = Creations("volume")

    async def work() -> int:
        return 7

    async with creations.deleting("v"):
        pass
    assert await creations.create("v", work) == 7


async def test_whoever_asked_and_was_cancelled_is_cancelled() -> None:
    creations, begun, ended = Creations("volume"), asyncio.Event(), list[str]()
    task = asyncio.create_task(creations.create("v", lambda: forever(begun, ended)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["made"]


async def test_a_cancellation_waits_for_a_thread() -> None:
    begun, go_on, over = threading.Event(), threading.Event(), list[bool]()

    def work() -> None:
        begun.set()
        over.append(go_on.wait(30))

    task = asyncio.create_task(to_thread_shielded(work))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    asyncio.get_running_loop().call_later(0, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over == [True]
