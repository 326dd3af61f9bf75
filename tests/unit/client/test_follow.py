"""Following events and jobs: nothing missed, nothing twice, whatever breaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

import httpx
import pytest
from tests.support.fake_api import FakeApi

from serai.client import follow
from serai.client.context import Context
from serai.client.follow import EventStream, Retry
from serai.client.http import Client
from serai.schema.errors import InvalidError, NotFoundError, UnavailableError
from serai.schema.ids import HostName
from serai.schema.job import Event, Job, JobState, StepState
from serai.schema.vm import VmMigrate


async def started(api: FakeApi, client: Client) -> Job:
    api.add("vm", "web1", {}, {"state": "running", "host": "h1"})
    job = await client.call("vm.migrate", "web1", VmMigrate(to=HostName("h2")))
    assert isinstance(job, Job)
    return job


async def test_events_resume_after_a_break_with_none_missed_and_none_twice(api: FakeApi, client: Client) -> None:
    for _ in range(3):
        api.emit("vm.state", "vm/web1")
    seen = []
    async with aclosing(client.events(after=0)) as events:
        async for event in events:
            seen.append(event.seq)
            if event.seq in (3, 6):
                api.break_streams()
                for _ in range(3):
                    api.emit("vm.state", "vm/web1")
            if event.seq == 9:
                break
    assert seen == list(range(1, 10))
    assert api.streams >= 3


async def test_signals_come_out_whole_from_bytes_in_any_pieces(client: Client) -> None:
    """JSON leaves U+2028 and U+0085 in a text as they are: neither ends a line. What is unfinished is dropped."""
    told = Event(seq=1, time=datetime.now(UTC), kind="vm.state", resource="vm/a", message="a\u2028b\x85c\x0bd ü")

    async def pieces() -> AsyncIterator[bytes]:
        lines = [
            ": events follow",
            "",
            "id: 1",
            f"data: {told.model_dump_json()}",
            "",
            "event: alive",
            "",
            "data: half",
        ]
        for byte in "\r\n".join(lines).encode():
            yield bytes([byte])

    def answer(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after")
        assert request.headers.get("Last-Event-ID") == after
        return httpx.Response(
            200, headers={"Content-Type": "text/event-stream"}, content=pieces() if after is None else b""
        )

    await client.http.aclose()
    client.http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://serai")
    async with aclosing(EventStream(client).signals()) as signals:
        # Open, an event, alive; and open again, after that event.
        assert [await anext(signals) for _ in range(4)] == [None, told, None, None]


async def test_a_job_is_seen_through_every_state_until_its_end(api: FakeApi, client: Client) -> None:
    api.hold.clear()
    job = await started(api, client)
    held = asyncio.Event()
    seen: list[Job] = []

    def look(state: Job) -> None:
        seen.append(state)
        if state.steps[1].state is StepState.RUNNING:
            held.set()

    waiting = asyncio.create_task(client.wait_job(job.id, look))
    await asyncio.wait_for(held.wait(), 10)
    api.hold.set()
    ended = await waiting
    assert ended.state is JobState.DONE
    assert ended.result is not None
    assert ended.result["downtime_ms"] == 12.0
    assert seen[-1] == ended
    assert len(seen) == len({state.model_dump_json() for state in seen})


async def test_who_only_waits_for_the_end_reads_the_job_at_its_end(
    api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.hold.clear()
    job = await started(api, client)
    read: list[Job] = []
    ask = client.job

    async def counted(job_id: str) -> Job:
        read.append(await ask(job_id))
        return read[-1]

    monkeypatch.setattr(client, "job", counted)
    waiting = asyncio.create_task(client.wait_job(job.id))
    async with asyncio.timeout(10):
        while len(read) < 1:  # when the stream is open
            await asyncio.sleep(0)
    for _ in range(5):
        api.emit("job.state", job.target, job=job.id, state="running")
    api.hold.set()
    assert (await asyncio.wait_for(waiting, 20)).state is JobState.DONE
    assert [state.state.ended for state in read] == [False, True]


async def test_a_broken_stream_does_not_lose_the_job(api: FakeApi, client: Client) -> None:
    api.hold.clear()
    job = await started(api, client)
    opened = asyncio.Event()
    waiting = asyncio.create_task(client.wait_job(job.id, lambda _: opened.set()))
    await asyncio.wait_for(opened.wait(), 10)
    api.break_streams()
    api.hold.set()
    assert (await asyncio.wait_for(waiting, 20)).state is JobState.DONE


async def test_the_controller_may_go_away_and_come_back(api: FakeApi) -> None:
    async with Client(Context(socket=api.socket)) as client:
        job = await started(api, client)
        api.hold.clear()
        running = await client.call("vm.migrate", "web1", VmMigrate(to=HostName("h3")))
        opened = asyncio.Event()
        waiting = asyncio.create_task(client.wait_job(running.id, lambda _: opened.set()))
        await asyncio.wait_for(opened.wait(), 10)
        hidden = api.socket.with_name("hidden")
        api.socket.rename(hidden)
        api.break_streams()
        api.hold.set()
        async with asyncio.timeout(10):
            while not api.jobs[running.id].state.ended:
                await asyncio.sleep(0.01)
        assert not waiting.done()
        hidden.rename(api.socket)
        assert (await asyncio.wait_for(waiting, 20)).state is JobState.DONE
        assert (await client.wait_job(job.id)).state.ended


async def test_a_refused_stream_is_replaced_by_asking(
    api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "POLL", 0.01)
    api.refuse_streams = True
    api.hold.clear()
    job = await started(api, client)
    opened = asyncio.Event()
    waiting = asyncio.create_task(client.wait_job(job.id, lambda _: opened.set()))
    await asyncio.wait_for(opened.wait(), 10)
    api.hold.set()
    assert (await asyncio.wait_for(waiting, 10)).state is JobState.DONE
    assert api.streams == 0


async def test_a_failed_job_is_returned_with_its_error(api: FakeApi, client: Client) -> None:
    api.failure = InvalidError("no", field="spec.memory", value="1P")
    job = await started(api, client)
    ended = await client.wait_job(job.id)
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert ended.error.field == "spec.memory"


async def test_an_unknown_job_is_not_found(client: Client) -> None:
    with pytest.raises(NotFoundError):
        await client.wait_job("0" * 12)


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "RETRY_FIRST", 0.0)
    now = 0.0
    retry = Retry(10.0, lambda: now)
    error = UnavailableError("away")
    await retry.pause(error)
    now = 9.0
    await retry.pause(error)
    retry.succeeded()
    now = 20.0
    await retry.pause(error)
    now = 31.0
    with pytest.raises(UnavailableError):
        await retry.pause(error)
