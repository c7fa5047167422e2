"""A node that is to go, as a pod's preStop hook says it: real Redis, real replica, real hook."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deployments import leaving
from deployments.redis_server import RedisServer
from deployments.replica import ModelReplica
from serving.jobs import Cell, JobQueue, ReplicaStatus, State
from tests.jobs import submit, until

pytestmark = pytest.mark.asyncio

POOL = "demo-wan"


@pytest.fixture
def environment(
    redis_server: RedisServer, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder by which the node tells its replicas."""
    variables = {
        "REDIS_URL": redis_server.url,
        "DATA_DIR": str(tmp_path),
        "MODELS_DIR": str(models_dir),
        "LEAVE_DIR": str(tmp_path / "leave"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"REELSERVE_{name}", value)
    return tmp_path / "leave"


@pytest_asyncio.fixture
async def replica(environment: Path, cell: Cell) -> AsyncIterator[ModelReplica]:
    replica = ModelReplica(POOL)
    yield replica
    await replica.__del__()


def run(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)


def hook() -> subprocess.Popen[bytes]:
    return run(["-m", "deployments.leaving"])


async def wait(process: subprocess.Popen[bytes]) -> int:
    with process:
        return await asyncio.to_thread(process.wait, 60)


async def test_a_node_that_goes_is_left_with_every_step_saved(
    replica: ModelReplica, environment: Path, queue: JobQueue
) -> None:
    # Given a clip that would take minutes,
    job = await submit(queue, steps=2000)

    async def is_running() -> bool:
        return (await queue.get(job.id, user=job.user)).step > 3

    await until(is_running)
    # when the node is told to go,
    assert await wait(hook()) == 0
    # then nobody has the job, and all of its steps are kept: no attempt was lost.
    left = await queue.get(job.id, user=job.user)
    assert (left.state, left.attempts) == (State.QUEUED, 0)
    assert left.step > 3
    pool = (await queue.pools([POOL]))[POOL]
    assert [each.state for each in pool.replicas if each.state is not ReplicaStatus.DRAINING] == []
    # Serve does not replace it here, where what took its place would leave too.
    await replica.check_health()


async def test_a_replica_that_starts_on_such_a_node_takes_nothing(
    environment: Path, cell: Cell, queue: JobQueue
) -> None:
    leaving.leave(environment, linger_s=0)
    replica = ModelReplica(POOL)
    assert await wait(hook()) == 0
    job = await submit(queue)
    await asyncio.sleep(1)
    assert (await queue.get(job.id, user=job.user)).state is State.QUEUED
    await replica.__del__()


async def test_a_replica_that_was_killed_is_not_waited_for(environment: Path) -> None:
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from deployments.leaving import here\n"
        f"with here(Path({str(environment)!r}), 'r1'):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = run(["-c", script])
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    told = asyncio.create_task(asyncio.to_thread(leaving.leave, environment, 0.0))
    await asyncio.sleep(0.3)
    assert not told.done()  # it is there, and has not left
    process.kill()
    await asyncio.wait_for(told, 10)
    process.wait()
    process.stdout.close()


async def test_a_node_goes_on_answering_while_others_still_ask_it(environment: Path) -> None:
    began = time.monotonic()
    await asyncio.to_thread(leaving.leave, environment, 0.5)
    assert time.monotonic() - began >= 0.5
