"""The undo stack."""

import asyncio

import pytest

from serai.lib.rollback import Rollback


async def test_an_exception_undoes_in_reverse_and_goes_on() -> None:
    done: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(0)
        done.append("slow")

    with pytest.raises(ValueError, match="step 3"):
        async with Rollback() as undo:
            undo.push("first", lambda: done.append("first"))
            undo.push("slow", slow)
            raise ValueError("step 3")
    assert done == ["slow", "first"]


async def test_success_and_keep_undo_nothing() -> None:
    done: list[str] = []
    async with Rollback() as undo:
        undo.push("first", lambda: done.append("first"))
    with pytest.raises(ValueError, match="later"):
        async with Rollback() as undo:
            undo.push("first", lambda: done.append("first"))
            undo.keep()
            raise ValueError("later")
    assert done == []


async def test_a_failing_undo_keeps_no_other_from_running() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("busy")

    with pytest.raises(ValueError, match="cause") as caught:
        async with Rollback() as undo:
            undo.push("first", lambda: done.append("first"))
            undo.push("umount", fail)
            raise ValueError("cause")
    assert done == ["first"]
    assert caught.value.__notes__ == ["undo failed too: umount: busy"]


async def test_a_second_cancellation_does_not_stop_the_undoing() -> None:
    started, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        started.set()
        await go.wait()
        done.set()

    async def work() -> None:
        async with Rollback() as undo:
            undo.push("slow", slow)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
