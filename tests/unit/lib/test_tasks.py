"""Tasks with an owner."""

import asyncio

import pytest

from serai.lib.tasks import Tasks


async def forever() -> None:
    await asyncio.Event().wait()


async def test_names_are_unique_while_in_use() -> None:
    async with Tasks("test") as tasks:
        first = tasks.start(forever(), "one")
        assert "one" in tasks
        with pytest.raises(RuntimeError, match="'one' of test: a task of that name"):
            tasks.start(forever(), "one")
        first.cancel()
        await asyncio.wait({first})
        assert "one" not in tasks
        others = [tasks.start(forever(), "one"), tasks.start(forever()), tasks.start(forever())]
    assert all(task.cancelled() for task in others)
    assert tasks.closed
    with pytest.raises(RuntimeError, match="closed"):
        tasks.start(forever())


async def test_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("no disk")

    tasks = Tasks("test")
    await asyncio.wait({tasks.start(fail(), "copy")})
    assert "task copy of test failed: no disk" in caplog.text
    await tasks.close()


async def test_a_task_may_close_its_owner() -> None:
    tasks = Tasks("test")
    other = tasks.start(forever())
    closer = tasks.start(tasks.close())
    await closer
    assert other.cancelled()
