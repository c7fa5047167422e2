"""One trace from a submission to its clip, as a collector sees it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from deployments.logs import JsonLines
from deployments.otlp import OtlpTracer
from deployments.redis_server import free_port
from deployments.worker import Worker
from serving.jobs import Cell, Job, JobQueue, JobSettings, Phase, State
from serving.jobs.job import asked_text
from serving.media import ArtifactStore, open_store
from serving.models.family import Denoising, Family
from serving.models.load import load_family
from serving.plan.catalog import Model, Placement
from serving.tracing import NO_TRACER, Tracer
from tests.api import as_user, error_of, services_over
from tests.collector import Collector, Seen, collecting
from tests.jobs import ended, until

pytestmark = pytest.mark.asyncio

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def family(demo_model: Model, models_dir: Path) -> Family:
    return load_family(demo_model, models_dir)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=video")
        yield collector


class Stack:
    """An ingress and, one after another, replicas of a model, each with a tracer of its own."""

    def __init__(
        self, redis: Redis, store: ArtifactStore, model: Model, family: Family, ratio: float | None
    ) -> None:
        self.queue = JobQueue(Cell(redis))
        self._redis, self._store = redis, store
        self._model, self._family = model, family
        self._ratio = ratio
        self._tracer = self._new_tracer("ingress", "i1")
        self._closed = False
        self.client: httpx.AsyncClient

    def _new_tracer(self, role: str, name: str) -> Tracer:
        return NO_TRACER if self._ratio is None else OtlpTracer(role, name, self._ratio)

    async def close(self) -> None:
        """Whatever the ingress has recorded is with the collector."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._tracer.close)

    @asynccontextmanager
    async def ingress(self) -> AsyncIterator[None]:
        services = services_over(self._redis, self._store, self._model, tracer=self._tracer)
        async with as_user(services) as self.client:
            yield
        await self.close()

    async def submit(self, headers: dict[str, str] | None = None, **fields: Any) -> Job:
        body = {"prompt": "a red ball", "seconds": 1, "size": "96x96", "steps": 4, **fields}
        answer = await self.client.post("/v1/videos", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return await self.queue.get(answer.json()["id"], user="ann")

    @asynccontextmanager
    async def replica(self, name: str = "r1", **changes: Any) -> AsyncIterator[None]:
        tracer = self._new_tracer("replica", name)
        limits = JobSettings(lease_s_min=2, quantum_s=0)
        model = self._model.model_copy(update=changes)
        family, cell = self._family, Cell(self._redis)
        worker = Worker(model, family, cell, self._store, name, limits, tracer)
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            await worker.drain(30)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(tracer.close)

    async def stepping(self, job: Job, step: int = 1) -> bool:
        now = await self.queue.get(job.id, user="ann")
        return now.phase is Phase.DENOISE and now.step >= step


@asynccontextmanager
async def traced(
    redis: Redis, store: ArtifactStore, model: Model, family: Family, ratio: float | None = 1.0
) -> AsyncIterator[Stack]:
    await Cell(redis).check_schema()
    stack = Stack(redis, store, model, family, ratio)
    async with stack.ingress():
        yield stack


@pytest_asyncio.fixture
async def stack(
    collector: Collector, redis: Redis, store: ArtifactStore, demo_model: Model, family: Family
) -> AsyncIterator[Stack]:
    async with traced(redis, store, demo_model, family) as stack:
        yield stack


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """What the rooms log meanwhile, as their lines say it."""
    lines: list[dict[str, Any]] = []
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    rooms = [logging.getLogger(room) for room in ("deployments", "serving")]
    for room in rooms:
        room.addHandler(handler)
        room.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        for room in rooms:
            room.removeHandler(handler)
            room.setLevel(logging.NOTSET)
        lines += [json.loads(line) for line in stream.getvalue().splitlines()]


def names(spans: Sequence[Seen]) -> list[str]:
    return [span.name for span in spans]


def within(inner: Seen, outer: Seen) -> bool:
    # Redis's clock has milliseconds.
    return outer.start_s - 0.002 <= inner.start_s <= inner.end_s <= outer.end_s + 0.002


async def test_a_job_is_one_tree_from_its_submission_to_its_delivery(
    stack: Stack, collector: Collector
) -> None:
    with logged() as lines:
        job = await stack.submit({"x-request-id": "req_of_ann"})
        async with stack.replica():
            done = await ended(stack.queue, job)
        await stack.close()
    assert done.state is State.COMPLETED

    submit, queue, lease = (collector.one(name) for name in ("submit", "queue", "lease"))
    assert submit.parent == ""
    assert names(collector.children(submit)) == ["queue", "lease"]
    stages = collector.children(lease)
    assert names(stages) == ["encode", "denoise", "decode", "deliver"]
    assert len(collector.spans) == 7
    assert {span.trace for span in collector.spans} == {submit.trace}
    assert not any(span.failed for span in collector.spans)

    assert [round(1000 * queue.start_s), round(1000 * queue.end_s)] == [
        job.created_ms,
        done.started_ms,
    ]
    assert all(within(stage, lease) for stage in stages)
    for before, after in pairwise(stages):
        assert before.end_s <= after.start_s + 0.002
    described = {"job_id": job.id, "model": "demo-wan", "class": "standard"}
    attempt = {**described, "attempt": 1, "fence": done.fence}
    request = {"request_id": "req_of_ann", "outcome": "accepted"}
    assert submit.attributes == {**described, **request}
    assert queue.attributes == attempt
    assert lease.attributes == {**attempt, "from_step": 0, "step": 4, "outcome": "completed"}
    assert stages[1].attributes == {"from_step": 0, "step": 4, "rows": 2, "forward_rows_max": 2}
    assert [span.kind for span in (submit, lease, *stages[:1])] == [
        "SERVER",
        "CONSUMER",
        "INTERNAL",
    ]
    of = [(span.of["service.name"], span.of["service.instance.id"]) for span in (submit, lease)]
    assert of == [("reelserve-ingress", "i1"), ("reelserve-replica", "r1")]
    assert {sent["x-team"] for sent in collector.headers} == {"video"}

    # The logs lead to the trace, and from the request to the job.
    accepted, leased, completed = (
        next(line for line in lines if line["message"].startswith(word))
        for word in ("accepted", "leased", "completed")
    )
    assert {line["trace_id"] for line in (accepted, leased, completed)} == {submit.trace}
    assert {line["job_id"] for line in (accepted, leased, completed)} == {job.id}
    assert (accepted["request_id"], accepted["span_id"]) == ("req_of_ann", submit.id)
    for line in (leased, completed):
        assert (line["span_id"], line["attempt"], line["fence"]) == (lease.id, 1, done.fence)


async def test_what_is_handed_over_goes_on_in_the_same_trace(
    stack: Stack, collector: Collector
) -> None:
    job = await stack.submit(steps=300)
    async with stack.replica("r1"):
        await until(lambda: stack.stepping(job))
    back = await stack.queue.get(job.id, user="ann")
    async with stack.replica("r2"):
        done = await ended(stack.queue, job)
    await stack.close()
    assert done.state is State.COMPLETED
    submit = collector.one("submit")
    assert names(collector.children(submit)) == ["queue", "lease", "queue", "lease"]
    assert {span.trace for span in collector.spans} == {submit.trace}
    (first, second), (_, waited) = collector.named("lease"), collector.named("queue")
    assert [first.of["service.instance.id"], second.of["service.instance.id"]] == ["r1", "r2"]
    assert [first.attributes["outcome"], second.attributes["outcome"]] == ["yielded", "completed"]
    assert names(collector.children(first)) == ["encode", "denoise"]
    assert names(collector.children(second)) == ["encode", "denoise", "decode", "deliver"]
    assert round(1000 * waited.start_s) == back.queued_ms
    step = first.attributes["step"]
    assert 0 < int(step) < 300
    assert [lease.attributes["from_step"] for lease in (first, second)] == [0, step]
    assert collector.children(second)[1].attributes["from_step"] == step
    assert not any(span.failed for span in collector.spans)


async def test_who_gives_way_is_said_to_be_preempted(stack: Stack, collector: Collector) -> None:
    async with stack.replica(placement=Placement(slots=1)):
        long = await stack.submit(steps=2000)
        await until(lambda: stack.stepping(long))
        short = await stack.submit(steps=1)
        await ended(stack.queue, short)
        await stack.queue.cancel(long.id, user="ann")
    outcomes = {
        (span.attributes["job_id"], span.attributes["outcome"]) for span in collector.named("lease")
    }
    assert {(long.id, "preempted"), (short.id, "completed")} <= outcomes
    assert not any(span.failed for span in collector.spans)


async def test_a_submission_goes_on_in_its_caller_s_trace(
    stack: Stack, collector: Collector
) -> None:
    job = await stack.submit({"traceparent": f"00-{TRACE}-{CALLER}-01"})
    async with stack.replica():
        await ended(stack.queue, job)
    await stack.close()
    submit = collector.one("submit")
    assert (submit.trace, submit.parent) == (TRACE, CALLER)
    assert {span.trace for span in collector.spans} == {TRACE}
    assert job.traceparent == f"00-{TRACE}-{submit.id}-01"


async def test_a_caller_that_is_not_sampled_is_not_and_a_broken_name_is_none(
    stack: Stack, collector: Collector
) -> None:
    unsampled = await stack.submit({"traceparent": f"00-{TRACE}-{CALLER}-00"})
    broken = await stack.submit({"traceparent": "00-x-y {z}"})
    async with stack.replica():
        for job in (unsampled, broken):
            await ended(stack.queue, job)
    await stack.close()
    assert unsampled.traceparent == ""
    assert len(collector.spans) == 7
    assert {span.attributes.get("job_id", broken.id) for span in collector.spans} == {broken.id}
    assert collector.one("submit").parent == ""


@pytest.mark.parametrize("ratio", [None, 0.0])
async def test_what_is_not_sampled_leaves_nothing_in_redis_and_sends_nothing(
    ratio: float | None,
    collector: Collector,
    redis: Redis,
    store: ArtifactStore,
    demo_model: Model,
    family: Family,
) -> None:
    async with traced(redis, store, demo_model, family, ratio) as stack:
        job = await stack.submit()
        kept = await redis.hgetall(Cell(redis).key("job", job.id))
        async with stack.replica():
            assert (await ended(stack.queue, job)).state is State.COMPLETED
    assert kept["asked"] == asked_text("demo-wan", job.service_tier, job.spec)
    assert not any("00-" in value for value in kept.values())
    assert collector.headers == []


class Broken:
    """The real family, except that it fails at every step."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def step(self, batch: Sequence[Denoising]) -> None:
        raise RuntimeError("out of luck")


async def test_what_failed_says_so_and_with_what(
    collector: Collector, redis: Redis, store: ArtifactStore, demo_model: Model, family: Family
) -> None:
    with logged() as lines:
        async with traced(redis, store, demo_model, Broken(family)) as stack:
            job = await stack.submit()
            async with stack.replica():
                assert (await ended(stack.queue, job)).state is State.FAILED
    lease, denoise = collector.one("lease"), collector.one("denoise")
    assert (lease.failed, lease.error, lease.attributes["outcome"]) == (
        True,
        "model_failed",
        "failed",
    )
    assert (denoise.failed, denoise.error) == (True, "RuntimeError")
    assert not any(span.failed for span in collector.spans if span not in (lease, denoise))
    (of_the_engine,) = [line for line in lines if line["logger"] == "serving.engine.engine"]
    assert of_the_engine["exception"].endswith("RuntimeError: out of luck")
    about = [of_the_engine[name] for name in ("job_id", "attempt", "trace_id", "span_id")]
    assert about == [job.id, 1, lease.trace, lease.id]


async def test_a_refusal_is_no_error_of_ours(stack: Stack, collector: Collector) -> None:
    answer = await stack.client.post("/v1/videos", json={"prompt": "x", "size": "7x7"})
    error_of(answer, 400)
    await stack.close()
    submit = collector.one("submit")
    assert (submit.failed, submit.attributes["outcome"]) == (False, "refused")
    assert submit.attributes["code"] == "unsupported_size"


@contextmanager
def deaf() -> Iterator[int]:
    """A port where connections are taken, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@contextmanager
def closed() -> Iterator[int]:
    """A port where nobody listens."""
    yield free_port()


@pytest.mark.parametrize("away", [deaf, closed])
async def test_a_collector_that_is_away_costs_spans_and_one_line_and_nothing_else(
    away: Callable[[], AbstractContextManager[int]],
    redis: Redis,
    store: ArtifactStore,
    demo_model: Model,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    caplog.set_level(logging.INFO, "deployments.otlp")

    def said() -> list[str]:
        loggers = ("deployments.otlp", "opentelemetry", "urllib3")
        return [r.getMessage() for r in caplog.records if r.name.startswith(loggers)]

    async def told() -> bool:
        return bool(said())

    with away() as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        async with traced(redis, store, demo_model, family) as stack:
            for seed in range(3):
                job = await stack.submit(seed=seed)
                await until(told)
                async with stack.replica():
                    assert (await ended(stack.queue, job)).state is State.COMPLETED
                # The replica's tracer may have said so as well.
                assert {text.partition(":")[0] for text in said()} == {
                    "spans are dropped until the collector takes them"
                }
            assert len(said()) <= 1 + 3
            assert all(text.partition(": ")[2] for text in said()), "and why"


async def test_a_collector_that_comes_back_gets_what_comes_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    caplog.set_level(logging.INFO, "deployments.otlp")
    tracer = OtlpTracer("ingress", "i1", 1.0)

    async def said(times: int) -> bool:
        return len(caplog.messages) == times

    for _ in range(3):
        tracer.request("lost", "").end()
        await until(partial(said, 1))
    with collecting(port) as collector:
        tracer.request("kept", "").end()
        await until(partial(said, 2))
        tracer.close()
    assert caplog.messages[1] == "the collector takes spans again"
    assert "kept" in names(collector.spans)
