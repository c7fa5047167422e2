"""Fixtures every test may use: a real Redis of each supported version, a tiny real model."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from deployments.demo_models import install
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.jobs import Cell, JobQueue, JobSettings, Leases, Upkeep
from serving.plan.catalog import Model
from tests import tools
from tests.clock import Clock

# So that what fails there says what it found, as in a test.
pytest.register_assert_rewrite("tests.machine", "tests.queue_state")

REDIS_VERSIONS = ("6.2", "7")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Continuous integration tolerates no skipped test: it would look like a passed one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("REELSERVE_FORBID_SKIPS") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Whole stacks one after another, in one process: two would fight for the same cores. Any other
    test wherever there is room."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture(scope="session", params=REDIS_VERSIONS)
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A running redis-server with the settings of production; each test runs on each version."""
    binary = tools.redis_servers()[request.param]
    server = RedisServer(tmp_path_factory.mktemp("redis"), str(binary.path))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=REDIS_VERSIONS)
def moved_redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RedisServer, Clock]]:
    """A redis-server as above whose clock can be moved. A module that moves it says::

    @pytest.fixture(scope="session")
    def redis_server(moved_redis_server):
        return moved_redis_server[0]
    """
    folder = tmp_path_factory.mktemp("moved-redis")
    clock = Clock(folder)
    binary = tools.redis_servers()[request.param]
    server = RedisServer(folder / "redis", str(binary.path), environment=clock.environment)
    server.start()
    yield server, clock
    server.stop()


@pytest.fixture
def clock(moved_redis_server: tuple[RedisServer, Clock]) -> Iterator[Clock]:
    """That server's clock; right before and after each test."""
    clock = moved_redis_server[1]
    clock.set(0)
    yield clock
    clock.set(0)


@pytest_asyncio.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client for an empty database."""
    client: Redis = Redis.from_url(redis_server.url, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def limits() -> JobSettings:
    """Bounds small enough to reach."""
    return JobSettings(queue_max=24, lease_s_min=1, garbage_s=0)


@pytest_asyncio.fixture
async def cell(redis: Redis) -> Cell:
    """An empty cell, claimed as whoever starts a stack does."""
    cell = Cell(redis)
    await cell.check_schema()
    return cell


@pytest.fixture
def queue(cell: Cell, limits: JobSettings) -> JobQueue:
    return JobQueue(cell, limits)


@pytest.fixture
def leases(cell: Cell, limits: JobSettings) -> Leases:
    """A replica's side of the queue."""
    return Leases(cell, "demo-wan", "r1", limits)


@pytest.fixture
def upkeep(cell: Cell, limits: JobSettings) -> Upkeep:
    return Upkeep(cell, limits)


@pytest.fixture(scope="session")
def demo_model() -> Model:
    """The demo model's catalog entry."""
    return StackSettings().catalog().resolve("demo-wan")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds the demo checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    install("demo-wan", folder / "demo-wan")
    return folder
