"""What waits in a real Triton server, as the autoscaler sees it: with Prometheus, and without."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from autoscale.adapter import Plan, ReplicaPolicy
from autoscale.values import Decision, Pool, Scaling, Server
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.models.triton import TritonServer
from serving.plan.errors import ServiceUnavailable
from tests.api import running_ingress
from tests.prometheus import prometheus
from tests.slow_model import SLOW, noted, sleep, taken
from tests.tools import ROOT
from tests.triton import TritonServer as Process
from tests.triton import triton

REQUEST_S = 8.0
POOL = Pool(
    "triton/slow",
    Scaling(min_replicas=1, max_replicas=4, cold_start_s=1),
    {"standard": 4.0},
    server=Server("slow", REQUEST_S),
)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, "slow", repository=ROOT / "tests" / "triton_models") as server:
        yield server


@pytest.fixture
def ingress(redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    Redis.from_url(redis_server.url).flushall()
    settings = StackSettings(redis_url=SecretStr(redis_server.url), data_dir=tmp_path)
    with running_ingress(settings) as url:
        yield url


class Deciding:
    """The policy, called as Serve's controller calls it, with no deployment of this pool."""

    def __init__(
        self, exporter: str, servers: list[str], prometheus_url: str | None = None
    ) -> None:
        self.decisions: list[Decision] = []
        self._policy = ReplicaPolicy(
            plan=lambda: Plan([POOL]),
            publish=lambda latest, plan: self.decisions.append(latest[POOL.name]),
            exporter_url=exporter,
            server_urls=servers,
            prometheus_url=prometheus_url,
        )

    def until(self, condition: Callable[[Decision], bool], seconds: float = 60) -> Decision:
        deadline = time.monotonic() + seconds
        while True:
            assert self._policy({}) == ({}, {}), "Serve is asked for nothing"
            if condition(self.decisions[-1]):
                return self.decisions[-1]
            assert time.monotonic() < deadline, self.decisions[-1]
            time.sleep(0.1)


@contextmanager
def crowded(process: Process, folder: Path) -> Iterator[None]:
    """One request is at work, and another waits behind it, until this ends."""
    over = threading.Event()

    async def ask() -> None:
        server = TritonServer(process.url)
        model, first = server.model(SLOW), folder / "first"
        asked = [asyncio.create_task(taken(model, sleep(60.0, first), timeout_s=90))]
        await noted(first, "began")
        asked.append(
            asyncio.create_task(taken(model, sleep(60.0, folder / "second"), timeout_s=90))
        )
        while not over.is_set():
            await asyncio.sleep(0.05)
        for each in asked:
            each.cancel()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(e, asyncio.CancelledError | ServiceUnavailable) for e in ended), ended
        await server.close()

    asking = threading.Thread(target=asyncio.run, args=[ask()])
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()


@pytest.mark.parametrize("by", ["prometheus", "scrape"])
def test_what_waits_there_asks_for_more_servers_and_a_lost_one_holds_what_there_is(
    process: Process,
    ingress: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    monkeypatch.delenv("RAY_PROMETHEUS_HOST", raising=False)
    jobs = {"ingress": [ingress.removeprefix("http://")], "triton": [process.metrics_address]}
    with prometheus(tmp_path / "prometheus", jobs) as server:
        deciding = Deciding(
            f"{ingress}/metrics",
            [f"http://{process.metrics_address}/metrics"],
            server.url if by == "prometheus" else None,
        )
        idle = deciding.until(lambda decision: decision.bound != "hold")
        assert (idle.target, idle.before, idle.demand.jobs) == (1, 1, 0)

        with crowded(process, tmp_path):
            busy = deciding.until(lambda decision: decision.demand.jobs > 0)
            assert busy.sample is not None
            seen = busy.sample.classes["standard"]
            assert (seen.queued_jobs, seen.queued_s) == (1, REQUEST_S)
            assert (seen.in_flight_jobs, seen.in_flight_s) == (1, REQUEST_S)
            assert (busy.before, busy.target, busy.bound) == (1, 2, "need")

        process.kill()
        lost = deciding.until(lambda decision: decision.bound == "hold")
        assert (lost.before, lost.target) == (1, 1)
        process.start()
        deciding.until(lambda decision: decision.bound != "hold")
