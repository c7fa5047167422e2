"""A whole stack whose parts are killed, replaced and crowded while a job runs.

It is a second stack beside the one the other tests share, which is a test as well.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.e2e.stacks import Stack, create, gone, up, wait_for

ROOT = Path(__file__).parents[2]
LEASE_S = 6
"""Of a replica that was killed; longer than a busy machine keeps a live one from its next step."""
CHECKPOINT_STEPS = 5
JOB = {"steps": 150, "seed": 11}


class Survivor:
    """A stack, its catalog, and what the job gives when nothing happens to it."""

    def __init__(self, stack: Stack, catalog: Path) -> None:
        self.stack = stack
        self._catalog = catalog
        self.client = stack.client()
        self.expected = self.clip(wait_for(self.client, create(self.client, **JOB)))

    def clip(self, video: dict[str, Any]) -> bytes:
        assert video["status"] == "completed", video
        for _ in range(50):
            try:
                answer = self.client.get(f"/v1/videos/{video['id']}/content")
                if answer.status_code == 200:
                    return answer.content
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"no content: {answer.status_code} {answer.text[:200]}")

    def pool(self) -> dict[str, Any]:
        pool: dict[str, Any] = self.client.get("/v1/status").json()["pools"]["demo-wan"]
        return pool

    def running(self, step: int = 2 * CHECKPOINT_STEPS) -> str:
        """Submit the job and wait until it is well on its way."""
        video_id = create(self.client, **JOB)
        until(lambda: bool(self.client.get(f"/v1/videos/{video_id}").json()["step"] >= step))
        return video_id

    def deploy(self, **changes: Any) -> None:
        """Change the model's catalog entry and deploy it."""
        write_entry(self._catalog, **changes)
        self.stack.redeploy()

    def none_was_hurt(self, videos: list[str], counts: dict[str, int], yields: int) -> None:
        """All are complete at the first attempt, with the same bytes; so many were handed over."""
        for video_id in videos:
            done = wait_for(self.client, video_id)
            assert self.clip(done) == self.expected
            assert done["attempts"] == 1
        after = self.pool()["counts"]
        # On a slow machine one of them may also have been preempted, to save another's deadline.
        yields += after.get("preempted", 0) - counts.get("preempted", 0)
        assert after["yielded"] == counts.get("yielded", 0) + yields
        assert after["resumed"] == counts.get("resumed", 0) + yields
        assert after.get("lease_lost", 0) == counts.get("lease_lost", 0)

    def replica_pids(self) -> set[int]:
        return {replica["pid"] for replica in self.pool()["replicas"]}


def write_entry(
    catalog: Path,
    replicas: int = 1,
    description: str = "tiny",
    every_steps: int | None = CHECKPOINT_STEPS,
) -> None:
    entry = yaml.safe_load((ROOT / "deployments/catalog/demo-wan.yaml").read_text())
    entry["description"] = description
    entry["scaling"] = None  # replicas come and go as a test says
    entry["placement"].update(replicas=replicas, slots=1)  # so that jobs wait
    entry["checkpoint"] = {"every_s": 3600, "every_steps": every_steps}
    (catalog / "demo-wan.yaml").write_text(yaml.safe_dump(entry, sort_keys=False))


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survivor]:
    folder = tmp_path_factory.mktemp("survivor")
    catalog = folder / "catalog"
    catalog.mkdir()
    write_entry(catalog)
    env = {
        "REELSERVE_CATALOG_DIRS": f'["{catalog}"]',
        "REELSERVE_JOBS_LEASE_S_MIN": str(LEASE_S),
        # Room for a second replica beside the one that is being replaced.
        "REELSERVE_LOGICAL_CPUS": "8",
    }
    with up(folder / "data", env=env) as stack:
        yield Survivor(stack, catalog)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def test_a_killed_replica_costs_the_steps_since_the_last_checkpoint(survivor: Survivor) -> None:
    before = survivor.pool()["counts"].get("resumed", 0)
    video_id = survivor.running()
    (pid,) = survivor.replica_pids()
    os.kill(pid, signal.SIGKILL)
    done = wait_for(survivor.client, video_id)
    assert survivor.clip(done) == survivor.expected
    assert done["attempts"] == 2
    assert survivor.pool()["counts"]["resumed"] == before + 1
    until(lambda: len(survivor.replica_pids()) == 1)


def test_a_killed_ingress_replica_is_replaced_and_loses_nothing(survivor: Survivor) -> None:
    video_id = survivor.running()
    ingresses = survivor.stack.named("ray::ServeReplica:reelserve:ingress")
    assert len(ingresses) == 2
    ingresses[0].kill()
    queued = [create_patiently(survivor.client) for _ in range(5)]
    for each in (video_id, *queued):
        done = wait_for(survivor.client, each)
        assert (done["status"], done["attempts"]) == ("completed", 1)
    assert survivor.clip(wait_for(survivor.client, video_id)) == survivor.expected


def create_patiently(client: httpx.Client) -> str:
    """As every SDK does: an answer that did not come is asked for again."""
    for _ in range(50):
        try:
            return create(client)
        except (httpx.HTTPError, AssertionError):
            time.sleep(0.1)
    raise AssertionError("nobody answers")


def test_a_killed_controller_loses_nothing_and_comes_back(survivor: Survivor) -> None:
    video_id = survivor.running()
    (controller,) = survivor.stack.named("ray::ServeController")
    controller.kill()
    assert create(survivor.client), "the ingress answers without it"
    done = wait_for(survivor.client, video_id)
    assert survivor.clip(done) == survivor.expected
    assert done["attempts"] == 1
    until(lambda: len(survivor.stack.named("ray::ServeController")) == 1)


def test_a_killed_redis_comes_back_with_every_job(survivor: Survivor) -> None:
    video_id = survivor.running()
    queued = [create(survivor.client) for _ in range(5)]
    (redis,) = survivor.stack.named("redis-server")
    redis.kill()
    answer = survivor.client.post("/v1/videos", json={"prompt": "x"})
    if answer.status_code != 200:  # unless it was back already
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
    done = wait_for(survivor.client, video_id)
    assert survivor.clip(done) == survivor.expected
    assert done["attempts"] == 1
    for each in queued:
        assert wait_for(survivor.client, each)["status"] == "completed"


def test_a_stopped_replica_loses_its_job_and_changes_nothing_when_it_goes_on(
    survivor: Survivor,
) -> None:
    video_id = survivor.running()
    (pid,) = survivor.replica_pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        done = wait_for(survivor.client, video_id)
    finally:
        # Serve may have replaced the replica, which did not answer its health checks.
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)
    assert survivor.clip(done) == survivor.expected
    assert done["attempts"] == 2
    assert wait_for(survivor.client, create(survivor.client))["status"] == "completed"
    assert survivor.client.get(f"/v1/videos/{video_id}").json()["attempts"] == 2
    until(lambda: len(survivor.replica_pids()) == 1)


def test_a_rolling_update_hands_the_running_job_over(survivor: Survivor) -> None:
    # Nothing is saved on schedule: what the next replica goes on from, the drain has saved.
    survivor.deploy(every_steps=None)
    until(lambda: survivor.pool()["replicas"][-1:] != [] and len(survivor.replica_pids()) == 1)
    counts = survivor.pool()["counts"]
    # The new replica takes a while to come; whatever runs then is handed over.
    videos = [survivor.running(), *(create(survivor.client, **JOB) for _ in range(5))]
    (old,) = survivor.replica_pids()
    survivor.deploy(description="updated", every_steps=None)
    survivor.none_was_hurt(videos, counts, yields=1)
    until(lambda: len(survivor.replica_pids() - {old}) == 1)
    assert gone([psutil.Process(old)] if psutil.pid_exists(old) else []) == []


def test_scaling_down_hands_the_running_job_back(survivor: Survivor) -> None:
    survivor.deploy(description="updated", every_steps=None, replicas=2)
    until(lambda: len(survivor.replica_pids()) == 2)
    counts = survivor.pool()["counts"]
    videos = [create(survivor.client, **JOB) for _ in range(4)]
    until(lambda: survivor.pool()["in_progress"] == 2)
    survivor.deploy(description="updated", every_steps=None, replicas=1)
    survivor.none_was_hurt(videos, counts, yields=1)
    until(lambda: len(survivor.replica_pids()) == 1)


def test_every_ingress_replica_serves_the_same_job(survivor: Survivor) -> None:
    video_id = create(survivor.client)
    wait_for(survivor.client, video_id)
    answers = []
    for process in survivor.stack.named("ray::ServeReplica:reelserve:ingress"):
        for connection in process.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            url = f"http://127.0.0.1:{connection.laddr.port}/v1/videos/{video_id}"
            try:
                answer = httpx.get(url, headers=survivor.client.headers, timeout=5)
            except httpx.HTTPError:
                continue  # one of Ray's own ports
            video = answer.json()
            del video["content_urls"]  # they name the port they were asked at
            answers.append(video)
    assert len(answers) == 2
    assert answers[0] == answers[1]


def test_a_thousand_idle_connections_do_not_stop_a_submission(survivor: Survivor) -> None:
    address = ("127.0.0.1", int(survivor.stack.url.rpartition(":")[2]))
    with ExitStack() as crowd:
        for number in range(1000):
            idle = crowd.enter_context(socket.create_connection(address, timeout=30))
            if number % 2:  # half of them said something once, and hold on
                idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        video_id = create(survivor.client)
        assert wait_for(survivor.client, video_id)["status"] == "completed"


def test_two_stacks_run_side_by_side(survivor: Survivor, stack: Stack) -> None:
    with stack.client() as other:
        mine, theirs = create(survivor.client), create(other)
        assert wait_for(survivor.client, mine)["status"] == "completed"
        assert wait_for(other, theirs)["status"] == "completed"
        assert other.get(f"/v1/videos/{mine}").status_code == 404
