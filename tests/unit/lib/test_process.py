"""The door to other programs: real ones, small ones."""

import asyncio
import os
import pwd
import signal
import sys
from pathlib import Path

import pytest

from serai.lib.process import (
    ProcessError,
    ProcessTimeout,
    ProgramMissingError,
    Watched,
    adopt,
    become,
    run,
    run_sync,
    spawn,
)

DEADLINE = 20


async def test_run_returns_what_the_program_said() -> None:
    done = await run(["sh", "-c", "cat; echo $WORD >&2; pwd"], input=b"in\n", env={"WORD": "out"}, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\n/\n", b"out\n")
    assert done.text == "in\n/\n"
    assert done.argv[0] == "sh"


async def test_a_failure_tells_the_code_and_the_last_words_but_no_arguments() -> None:
    with pytest.raises(ProcessError) as caught:
        await run(["sh", "-c", "echo no such pool >&2; exit 3", "--password=geheim"])
    assert caught.value.returncode == 3
    assert "sh failed with code 3: no such pool" in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert (await run(["false"], check=False)).returncode == 1
    with pytest.raises(ProcessError, match="SIGKILL"):
        await run(["sh", "-c", "kill -9 $$"])


async def test_a_missing_program_has_a_remedy() -> None:
    for call in (run(["serai-no-such-program"]), spawn(["serai-no-such-program"])):
        with pytest.raises(ProgramMissingError, match="Install"):
            await call
    with pytest.raises(ProgramMissingError):
        run_sync(["serai-no-such-program"])
    with pytest.raises(FileNotFoundError):
        await run(["true"], cwd="/no/such/folder")


async def test_a_process_becomes_another_program() -> None:
    code = "from serai.lib.process import become; become(['sh', '-c', 'echo $$; exit 7'], package='dash')"
    done = await run([sys.executable, "-c", "import os; print(os.getpid(), flush=True); " + code], check=False)
    before, after = done.text.split()
    assert (done.returncode, before) == (7, after)
    with pytest.raises(ProgramMissingError) as caught:
        become(["serai-no-such-program"], package="serai-extra")
    assert caught.value.info.remedy == "Install serai-extra."


async def test_a_detached_process_goes_on_in_a_session_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from serai.lib.process import detach\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "detach()\n"
        "out.with_suffix('.part').write_text(f'{os.getpid()} {os.getsid(0)} {os.getcwd()}')\n"
        "out.with_suffix('.part').rename(out)\n"
    )
    child = await spawn([sys.executable, "-c", code, str(tmp_path / "out")], cwd=tmp_path)
    assert await child.wait() == 0
    async with asyncio.timeout(DEADLINE):
        while not (tmp_path / "out").exists():
            await asyncio.sleep(0.01)
    pid, session, folder = (tmp_path / "out").read_text().split()
    assert (session, folder) == (pid, "/")
    assert int(pid) != child.pid


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


async def gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    async with asyncio.timeout(DEADLINE):
        await Watched(pid, pidfd).exited()


async def test_time_out_and_cancellation_kill_the_whole_group(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    argv = ["sh", "-c", f"sleep 600 & echo $! > {file}.new; echo $$ >> {file}.new; mv {file}.new {file}; wait"]
    with pytest.raises(ProcessTimeout, match="longer than"):
        await run(argv, timeout=1)
    for pid in pids_in(file):
        await gone(pid)
    file.unlink()
    task = asyncio.create_task(run(argv))
    async with asyncio.timeout(DEADLINE):
        while not file.exists():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(pids_in(file)) == 2
    for pid in pids_in(file):
        await gone(pid)


def test_run_sync() -> None:
    assert run_sync(["cat"], input=b"x").stdout == b"x"
    with pytest.raises(ProcessError, match="code 1"):
        run_sync(["false"])
    with pytest.raises(ProcessTimeout):
        run_sync(["sleep", "600"], timeout=0.05)


async def test_spawn_writes_to_files_and_is_waited_for_by_many(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("before\n")
    child = await spawn(["sh", "-c", "echo said; echo wrong >&2; exit 7"], stdout=out, stderr=out)
    codes = list(await asyncio.gather(child.wait(), child.wait(), child.wait()))
    assert codes == [7, 7, 7]
    assert not child.alive
    assert out.read_text() == "before\nsaid\nwrong\n"
    child.send_signal(signal.SIGTERM)
    await child.terminate()


async def test_spawn_as_another_user_keeps_no_groups_and_no_descriptors() -> None:
    own_end, other_end = os.pipe()
    passed, leaked = os.pipe()
    os.set_inheritable(leaked, True)
    script = (
        f"id -u; id -G; test -e /proc/self/fd/{leaked} && echo leaked; test -e /proc/self/fd/{passed} && echo passed; "
        "set -- $(cat /proc/$$/stat); echo $6 $$"
    )
    with os.fdopen(own_end, "rb") as said:
        child = await spawn(["sh", "-c", script], user="nobody", group="nogroup", pass_fds=[passed], stdout=other_end)
        for descriptor in (other_end, passed, leaked):
            os.close(descriptor)
        assert await child.wait() == 0
        uid, gid, word, session = said.read().decode().split("\n")[:4]
    nobody = pwd.getpwnam("nobody")
    assert (uid, gid, word) == (str(nobody.pw_uid), str(nobody.pw_gid), "passed")
    leader, own = session.split()
    assert leader == own


async def test_terminate_kills_what_does_not_listen(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = await spawn(["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 600; done"])
    async with asyncio.timeout(DEADLINE):
        while not ready.exists():
            await asyncio.sleep(0.01)
    assert child.alive
    try:
        await child.terminate(timeout=0.1)
        assert await child.wait() == -signal.SIGKILL
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # the sleep that its shell left


async def test_adopt_takes_the_right_process_only() -> None:
    child = await spawn(["sleep", "6001"])
    held = adopt(child.pid, expect="6001")
    assert held is not None
    assert adopt(child.pid, expect="another") is None
    waiting = asyncio.create_task(held.exited())
    await held.terminate()
    await waiting
    assert await child.wait() == -signal.SIGTERM
    assert not held.alive
    assert adopt(child.pid, expect="6001") is None


async def test_a_cancelled_wait_leaves_the_process_alone() -> None:
    child = await spawn(["sleep", "6002"])
    waiting = asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert child.alive
    await child.kill()
    assert await child.wait() == -signal.SIGKILL


async def test_a_child_has_room_for_descriptors_from_the_start() -> None:
    child = await spawn(["sleep", "60"], descriptors=512)
    try:
        status = Path(f"/proc/{child.pid}/status").read_text()
        (size,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("FDSize:")]
        assert size >= 512
        assert max(int(link.name) for link in Path(f"/proc/{child.pid}/fd").iterdir()) < 256  # none of ours went along
    finally:
        await child.kill()
