"""A whole stack that is scaled by a real Prometheus: up from one and from none, and back.

Two pools of the demo model share three (logical) GPUs: ``steady`` always has a replica, ``rare``
has none when it has nothing to do. A third, ``broken``, has no weights until somebody puts them
there.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.redis_server import free_port
from tests.e2e.stacks import Stack, create, up, wait_for
from tests.prometheus import Prometheus, prometheus

ROOT = Path(__file__).parents[2]
ADMIN = "rsk_admin_of_this_test"
GPUS = 3
FLOORS = {"steady": 1, "rare": 0, "broken": 0}
SLOTS = 2
STEPS = 30
LONG_STEPS = 600
"""They take longer than a replica takes to start."""
CHECKPOINT_STEPS = 5
SERVE_GIVES_UP = 3
"""After so many failed starts Serve starts no other."""


def write_pool(folder: Path, name: str, **scaling: Any) -> None:
    """One or two at a time of the demo model's clips, on a GPU each. The objectives are short, so
    that a minute of work is a spike."""
    entry = yaml.safe_load((ROOT / "deployments/catalog/demo-wan.yaml").read_text())
    entry.update(id=name, aliases=[], description=name)
    entry["weights"] = {"path": f"{{models_dir}}/{'demo-wan' if name != 'broken' else name}"}
    entry["placement"] = {"num_cpus": 1, "num_gpus": int(name != "broken"), "slots": SLOTS}
    entry["checkpoint"] = {"every_s": 3600, "every_steps": CHECKPOINT_STEPS}
    entry["classes"] = {"burst": {"first_step_s": 2}, "standard": {"first_step_s": 4}}
    entry["scaling"] = {
        "min_replicas": FLOORS[name],
        "keep_alive_s": 5,
        "cold_start_s": 10,
        **scaling,
    }
    new = folder / f"{name}.new"
    new.write_text(yaml.safe_dump(entry, sort_keys=False))
    new.replace(folder / f"{name}.yaml")


SMALL = {"size": "128x128", "seconds": 1}
"""Two of these clips share a forward. Of larger ones, each has its own."""
LEASED = re.compile(r"leased after \d+ ms, at step (?P<step>\d+)")
HANDED_BACK = re.compile(
    r"yielded at step (?P<step>\d+) after \S+ s, (?P<late>-?\d+) of its steps made in the drain"
)


@dataclass(frozen=True)
class HandBack:
    """What was logged of a job that a replica handed back: it had made ``step`` steps, ``late`` of
    them since the drain began, and went on ``from_step``."""

    job_id: str
    replica: str
    step: int
    late: int
    from_step: int


@dataclass
class Cluster:
    """The stack, its catalog, and the Prometheus that scrapes it."""

    stack: Stack
    catalog: Path
    models: Path
    prometheus: Prometheus

    def __post_init__(self) -> None:
        self.client = self.stack.client()
        self.admin = httpx.Client(
            base_url=self.stack.url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=30
        )

    def pool(self, name: str) -> dict[str, Any]:
        pool: dict[str, Any] = self.client.get("/v1/status").json()["pools"][name]
        return pool

    def replicas(self, name: str) -> int:
        return len([each for each in self.pool(name)["replicas"] if each["state"] in READY])

    def decision(self, name: str) -> dict[str, Any]:
        answer = self.admin.get("/v1/admin/autoscale", params={"model": name}).json()
        decision: dict[str, Any] = answer["pools"][0]["decision"]
        return decision

    def metric(self, name: str, model: str) -> float:
        text = self.client.get("/metrics").text
        found = re.search(rf'^{name}{{model="{model}"}} (\S+)$', text, re.MULTILINE)
        assert found, f"{name} of {model} is not there"
        return float(found[1])

    def crowd(self, name: str, jobs: int, **more: Any) -> list[str]:
        fields = {"model": name, "seconds": 4, "steps": STEPS, "size": "128x128", **more}
        return [create(self.client, seed=seed, **fields) for seed in range(jobs)]

    def all_complete_and_none_starts_over(self, name: str, videos: list[str]) -> None:
        """Every job at its first attempt; what a yield did not save is a step at most."""
        for video_id in videos:
            video = wait_for(self.client, video_id, seconds=360)
            assert video["status"] == "completed", video
            assert video["attempts"] == 1
        counts = self.pool(name)["counts"]
        assert counts.get("lease_lost", 0) == 0
        assert counts.get("resumed", 0) == counts.get("yielded", 0)
        redone = self.metric("reelserve_steps_redone_total", name)
        assert redone <= counts.get("yielded", 0)

    def handed_back(self, name: str, videos: list[str]) -> list[HandBack]:
        """Those of these jobs, which have ended."""
        logged, found = self.stack.logged(name), []
        for video in videos:
            story = [line for line in logged if line.get("job_id") == video]
            story.sort(key=lambda line: line["fence"])
            for line, after in pairwise(story):
                if back := HANDED_BACK.fullmatch(line["message"]):
                    then = LEASED.fullmatch(after["message"])
                    assert then, after
                    steps = int(back["step"]), int(back["late"]), int(then["step"])
                    found.append(HandBack(video, line["replica"], *steps))
        return found

    def at_rest(self) -> bool:
        return all(self.replicas(name) == floor for name, floor in FLOORS.items())


READY = ("idle", "busy")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("autoscale")
    catalog, models = folder / "catalog", folder / "models"
    catalog.mkdir()
    shutil.copytree(models_dir / "demo-wan", models / "demo-wan")
    write_pool(catalog, "steady", max_replicas=2)
    write_pool(catalog, "rare", max_replicas=1)
    write_pool(catalog, "broken", max_replicas=1)
    port = free_port()
    with prometheus(folder / "prometheus", {"ingress": [f"127.0.0.1:{port}"]}) as server:
        env = {
            "REELSERVE_AUTOSCALE_ENABLED": "true",
            "REELSERVE_CATALOG_DIRS": f'["{catalog}"]',
            "REELSERVE_MODELS_DIR": str(models),
            "REELSERVE_MODELS": '["steady", "rare", "broken"]',
            "REELSERVE_LOGICAL_GPUS": str(GPUS),
            "REELSERVE_AUTOSCALE_PROMETHEUS_URL": server.url,
            "REELSERVE_ADMIN_KEY": ADMIN,
        }
        with up(folder / "data", env=env, port=port) as stack:
            yield Cluster(stack, catalog, models, server)


def until(
    condition: Callable[[], Any], seconds: float = 150, tell: Callable[[], Any] = str
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that: {tell()}"
        time.sleep(0.1)


def test_a_spike_takes_pools_to_their_maximum_and_back_though_another_cannot_start(
    cluster: Cluster,
) -> None:
    # Given one pool with a replica, one without any, and a job for one whose replicas fail to start
    until(cluster.at_rest)
    (stuck,) = cluster.crowd("broken", 1)
    until(lambda: cluster.metric("reelserve_replica_start_failures", "broken") >= 1)
    # When more comes for the others than could be done in time
    videos = {name: cluster.crowd(name, jobs) for name, jobs in (("steady", 6), ("rare", 2))}
    # Then both get all that they may have
    until(
        lambda: cluster.replicas("steady") == 2 and cluster.replicas("rare") == 1,
        tell=lambda: [cluster.decision("steady"), cluster.decision("rare")],
    )
    # And every job becomes a clip, without a step done twice but for what a yield costs
    for name, ids in videos.items():
        cluster.all_complete_and_none_starts_over(name, ids)
    # And the one that fails is left alone for a while each time, where Serve would have given it up
    until(lambda: cluster.metric("reelserve_replica_start_failures", "broken") >= SERVE_GIVES_UP)
    until(
        lambda: cluster.decision("broken")["bound"] == "backoff",
        tell=lambda: cluster.decision("broken"),
    )
    assert cluster.decision("broken")["retry_in_s"] > 0
    # And once its weights are there, it starts, and its job is done
    shutil.copytree(cluster.models / "demo-wan", cluster.models / "broken")
    assert wait_for(cluster.client, stuck, seconds=240)["status"] == "completed"
    assert cluster.metric("reelserve_replica_start_failures", "broken") == 0
    # And then all are given back
    until(cluster.at_rest, tell=lambda: [cluster.decision(name) for name in FLOORS])


def test_a_pool_keeps_its_floor_when_the_budget_binds(cluster: Cluster) -> None:
    # Given that one pool may have as many as there are GPUs
    write_pool(cluster.catalog, "rare", max_replicas=GPUS)
    # When it has work for all of them
    videos = cluster.crowd("rare", 6)
    until(
        lambda: cluster.decision("rare")["wanted"] == GPUS,
        tell=lambda: cluster.decision("rare"),
    )
    until(lambda: cluster.replicas("rare") == GPUS - FLOORS["steady"])
    # Then it gets those that the other need not have
    decision = cluster.decision("rare")
    assert (decision["target"], decision["bound"]) == (GPUS - FLOORS["steady"], "budget")
    assert cluster.replicas("steady") == FLOORS["steady"]
    cluster.all_complete_and_none_starts_over("rare", videos)
    write_pool(cluster.catalog, "rare", max_replicas=1)


def test_busy_replicas_hand_their_jobs_back_and_without_prometheus_none_goes(
    cluster: Cluster,
) -> None:
    # Given two replicas, both amid as many long jobs as they have slots
    videos = cluster.crowd("steady", 2 * SLOTS, steps=LONG_STEPS, **SMALL)
    until(
        lambda: cluster.pool("steady")["in_progress"] == 2 * SLOTS,
        tell=lambda: [cluster.pool("steady"), cluster.decision("steady")],
    )
    before = cluster.pool("steady")["counts"].get("yielded", 0)
    # When the operator allows only one
    write_pool(cluster.catalog, "steady", max_replicas=1)
    # Then the one that goes hands its jobs back
    until(lambda: cluster.pool("steady")["counts"].get("yielded", 0) >= before + SLOTS)
    until(lambda: cluster.replicas("steady") == 1)
    assert cluster.decision("steady")["target"] == 1
    # When there may be two again, and Prometheus dies once there are
    write_pool(cluster.catalog, "steady", max_replicas=2)
    until(lambda: cluster.replicas("steady") == 2, tell=lambda: cluster.decision("steady"))
    cluster.prometheus.kill()
    # Then the metric that an alert watches says so
    until(lambda: cluster.metric("reelserve_autoscale_holding", "steady") == 1)
    # And of the jobs that were handed back no step is done again
    cluster.all_complete_and_none_starts_over("steady", videos)
    handed_back = cluster.handed_back("steady", videos)
    assert len({each.job_id for each in handed_back}) == len(handed_back) == SLOTS
    assert len({each.replica for each in handed_back}) == 1
    assert all(each.from_step == each.step > 0 for each in handed_back), handed_back
    # And none was made in the drain but the one that it found each job in
    assert all(each.late in (0, 1) for each in handed_back), handed_back
    # And the pool keeps its replicas, though it has nothing left to do
    for _ in range(20):
        decision = cluster.decision("steady")
        assert (decision["target"], decision["bound"]) == (2, "hold")
        assert cluster.replicas("steady") == 2
        time.sleep(0.5)
