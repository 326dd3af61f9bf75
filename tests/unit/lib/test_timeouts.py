"""The two time-outs behave alike, Python's where it can; in a task that was cancelled before, too."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from serai.lib.timeouts import Timeout, time_limit

Make = Callable[[float], AbstractAsyncContextManager[object]]
both = pytest.mark.parametrize("make", [Timeout, time_limit], ids=["ours", "this Python's"])


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def test_pythons_own_is_taken_where_it_is_sound() -> None:
    assert isinstance(time_limit(1), Timeout) is (sys.version_info < (3, 11, 3))


@both
async def test_what_takes_too_long_is_ended(make: Make) -> None:
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TimeoutError):
        async with make(0):
            await forever()
    assert task.cancelling() == 0


@both
async def test_what_is_done_in_time_and_what_fails_are_let_be(make: Make) -> None:
    async with make(60):
        await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with make(60):
            raise KeyError("its own")
    with contextlib.suppress(KeyError):
        async with make(0):
            try:
                await forever()
            finally:
                raise KeyError("while it is ended")


@both
async def test_the_inner_one_of_two_ends_alone(make: Make) -> None:
    async with make(60):
        with pytest.raises(TimeoutError):
            async with make(0):
                await forever()
        await asyncio.sleep(0)


@both
async def test_in_a_task_that_was_cancelled_it_still_is_a_time_out(make: Make) -> None:
    cleaned = []

    async def work() -> None:
        try:
            await forever()
        finally:
            try:
                async with make(0):
                    await forever()
            except TimeoutError:
                cleaned.append("by force")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["by force"]


@both
async def test_a_cancellation_from_outside_goes_on(make: Make) -> None:
    async def work() -> None:
        async with make(60):
            await forever()

    async def late() -> None:
        async with make(0):
            try:
                await forever()
            except asyncio.CancelledError:
                await forever()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow = asyncio.create_task(late())
    while slow.cancelling() == 0:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
