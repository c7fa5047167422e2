"""The policy as Serve calls it, over a real ingress and a real Prometheus, without a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from autoscale.adapter import Plan, ReplicaPolicy
from autoscale.values import Decision
from deployments.autoscaling import pool_of
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.jobs import Cell, JobQueue
from serving.plan.catalog import Model, ScalingPolicy
from tests.api import running_ingress
from tests.jobs import submit
from tests.prometheus import Prometheus, prometheus

POOL = "demo-wan"
FASTER = 5
"""The policy's clock: what it waits for before it gives replicas back takes minutes."""
ID = DeploymentID(name=POOL, app_name="reelserve")


@dataclass
class Controller:
    """Calls the policy as Serve's controller does, and gives each pool what it says at once."""

    policy: ReplicaPolicy
    target: int = 0
    decisions: list[Decision] = field(default_factory=list)

    def tick(self) -> int:
        replies, states = self.policy({ID: context(self.target)})
        assert states == {}
        self.target = replies[ID]
        return self.target

    def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.decisions[-1:]
            self.tick()
            time.sleep(0.1)


def context(target: int) -> AutoscalingContext:
    """Of a deployment whose replicas are all ready."""
    return AutoscalingContext(
        deployment_id=ID,
        deployment_name=POOL,
        app_name="reelserve",
        current_num_replicas=target,
        target_num_replicas=target,
        running_replicas=[None] * target,
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics=None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )


@pytest.fixture
def model(demo_model: Model) -> Model:
    scaling = ScalingPolicy(max_replicas=3, keep_alive_s=2, cold_start_s=1)
    return demo_model.model_copy(update={"scaling": scaling})


@pytest.fixture
def ingress(redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    Redis.from_url(redis_server.url).flushall()
    settings = StackSettings(redis_url=SecretStr(redis_server.url), data_dir=tmp_path)
    with running_ingress(settings) as url:
        yield url


@pytest.fixture
def server(ingress: str, tmp_path: Path) -> Iterator[Prometheus]:
    with prometheus(tmp_path / "prometheus", {"ingress": [ingress.removeprefix("http://")]}) as it:
        yield it


def controller(model: Model, ingress: str, prometheus_url: str | None = None) -> Controller:
    assert model.scaling
    plan = Plan([pool_of(model, model.scaling)])
    decisions: list[Decision] = []
    policy = ReplicaPolicy(
        plan=lambda: plan,
        publish=lambda latest, plan: decisions.append(latest[POOL]),
        exporter_url=f"{ingress}/metrics",
        prometheus_url=prometheus_url,
        clock=lambda: FASTER * time.monotonic(),
    )
    return Controller(policy, decisions=decisions)


def crowd(url: str, jobs: int, est_device_ms: int) -> None:
    """As many jobs of different users, waiting."""

    async def send() -> None:
        redis: AsyncRedis = AsyncRedis.from_url(url, decode_responses=True)
        queue = JobQueue(Cell(redis))
        for number in range(jobs):
            await submit(queue, user=f"user{number}", est_device_ms=est_device_ms)
        await redis.aclose()

    asyncio.run(send())


def cancel_all(url: str) -> None:
    async def send() -> None:
        redis: AsyncRedis = AsyncRedis.from_url(url, decode_responses=True)
        queue = JobQueue(Cell(redis))
        for name in await redis.keys("*:job:*"):
            job = await queue.find(str(name).rsplit(":", 1)[1])
            assert job is not None
            await queue.cancel(job.id, user=job.user)
        await redis.aclose()

    asyncio.run(send())


def test_it_scales_by_prometheus_and_back_to_zero(
    redis_server: RedisServer, model: Model, ingress: str, server: Prometheus
) -> None:
    calls = controller(model, ingress, prometheus_url=server.url)
    calls.until(lambda: bool(calls.decisions and calls.decisions[-1].bound == "need"))
    assert calls.target == 0

    crowd(redis_server.url, jobs=20, est_device_ms=60_000)
    calls.until(lambda: calls.target == 3)
    assert calls.decisions[-1].bound == "max_replicas"
    seen = calls.decisions[-1].sample
    assert seen is not None
    assert seen.classes["standard"].queued_jobs == 20
    assert seen.classes["standard"].queued_s == pytest.approx(1200)
    assert seen.classes["standard"].arrived_s == pytest.approx(1200)

    cancel_all(redis_server.url)
    calls.until(lambda: calls.target == 0)


def test_without_prometheus_it_reads_the_ingress_itself(
    redis_server: RedisServer, model: Model, ingress: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_PROMETHEUS_HOST", raising=False)
    calls = controller(model, ingress)
    crowd(redis_server.url, jobs=20, est_device_ms=60_000)
    calls.until(lambda: calls.target == 3)


def test_prometheus_that_dies_holds_what_there_is(
    redis_server: RedisServer, model: Model, ingress: str, server: Prometheus
) -> None:
    crowd(redis_server.url, jobs=20, est_device_ms=60_000)
    calls = controller(model, ingress, prometheus_url=server.url)
    calls.until(lambda: calls.target == 3)
    server.kill()
    calls.until(lambda: calls.decisions[-1].bound == "hold", seconds=40)
    assert calls.target == 3


def test_an_ingress_that_prometheus_does_not_reach_holds_what_there_is(
    redis_server: RedisServer, model: Model, ingress: str, tmp_path: Path
) -> None:
    with prometheus(tmp_path / "elsewhere", {"ingress": ["127.0.0.1:9"]}) as server:
        calls = controller(model, ingress, prometheus_url=server.url)
        calls.target = 2
        crowd(redis_server.url, jobs=20, est_device_ms=60_000)
        for _ in range(40):
            assert calls.tick() == 2
            time.sleep(0.1)
        assert calls.decisions[-1].bound == "hold"


def test_it_never_raises(model: Model, ingress: str) -> None:
    calls = controller(model, ingress)

    class Broken:
        deployment_name = POOL
        target_num_replicas = 2
        running_replicas = None

    assert calls.policy({ID: Broken()}) == ({ID: 2}, {})
