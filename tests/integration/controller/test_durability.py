"""Nothing acknowledged is lost: a process is killed in mid-write, and all that it had announced is there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from serai.controller.store import Store
from serai.lib import process

WRITER = """
import asyncio, sys
from pathlib import Path
from serai.controller.store import Store

async def main():
    store = await Store.open(Path(sys.argv[1]))
    with open(sys.argv[2], "w", buffering=1) as told:
        for number in range(100_000):
            async with store.transaction() as tx:
                await tx.emit("written", f"n/{number}")
                await tx.secrets.put("n", str(number), "x")
                tx.on_commit(lambda: told.write(f"{number}\\n"))

asyncio.run(main())
"""


async def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    file, told = tmp_path / "serai.db", tmp_path / "told"
    child = await process.spawn([sys.executable, "-c", WRITER, str(file), str(told)])
    try:
        async with asyncio.timeout(30):
            while not told.exists() or len(told.read_text().splitlines()) < 20:
                await asyncio.sleep(0.01)
    finally:
        await child.kill()
    announced = [int(line) for line in told.read_text().split("\n")[:-1]]
    store = await Store.open(file)
    async with store.read() as view:
        events = await view.events.after(0, 100_000)
        assert len(events) in (len(announced), len(announced) + 1)
        # Both halves of a transaction, or neither.
        for number in range(len(events)):
            assert await view.secrets.get("n", str(number)) == "x"
        assert await view.secrets.get("n", str(len(events))) is None
    await store.close()
