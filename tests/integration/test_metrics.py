"""What an ingress exports at ``/metrics``, from a cell in which everything has happened."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from deployments.engine_metrics import COUNTERS, GAUGE
from deployments.housekeeping import apply_objectives
from quota.ledger import Kind
from quota.redis_ledger import RedisLedger
from serving.api import Services
from serving.api.metrics.jobs import EVENTS, TALLIES
from serving.jobs import (
    BUCKETS_S,
    Cell,
    CostStore,
    Decisions,
    Job,
    JobQueue,
    JobSettings,
    Leases,
    Limits,
    Phase,
    ReplicaStatus,
    Upkeep,
    Wish,
)
from serving.media import open_store
from serving.plan.catalog import Model, ScalingPolicy
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.costs import CostModel
from serving.plan.errors import CheckpointCorrupt, ModelFailed, Refused
from tests import tools
from tests.api import services_over, serving
from tests.decisions import decision
from tests.jobs import LEASE_MS, submit

pytestmark = pytest.mark.asyncio

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
MODEL = "demo-wan"
USERS = ("ann_the_first", "bob_the_second")
BURST = Limits(inside=ServiceClass.BURST)
PAID = Limits(beyond="credits", generations=0, days_ms=[day * 86_400_000 for day in range(60_000)])
PRIORITY = Wish(ServiceTier.PRIORITY)


@pytest.fixture
def services(redis: Redis, tmp_path: Path, demo_model: Model) -> Services:
    scaled = demo_model.model_copy(update={"scaling": ScalingPolicy(max_replicas=4)})
    return services_over(redis, open_store(tmp_path.as_uri()), scaled)


@pytest_asyncio.fixture
async def client(services: Services, cell: Cell) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(services) as client:
        yield client


@dataclass
class Everything:
    """A pool of which each figure is known."""

    cell: Cell
    ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.cell, JobSettings())
        self.leases = Leases(self.cell, MODEL, "r_busy")

    async def submit(self, job_id: str, **asked: Any) -> None:
        asked.setdefault("user", USERS[len(self.ids) % 2])
        self.ids.append((await submit(self.queue, job_id=job_id, **asked)).id)

    async def lease(self, job_id: str) -> Job:
        lease = await self.leases.lease(LEASE_MS)
        assert lease is not None
        assert lease.job.id == job_id
        return lease.job

    async def step(self, job: Job, step: int, spent_ms: int = 0) -> None:
        progress: dict[str, Any] = {"phase": Phase.DENOISE, "step": step, "remaining_ms": 1}
        await self.leases.heartbeat(job, lease_ms=LEASE_MS, spent_ms=spent_ms, **progress)

    async def happen(self, models: list[Model]) -> None:
        await apply_objectives(self.queue, models)
        await self._end_some()
        await self._lose_and_hand_back()
        await self._refuse()
        await self._replicas()
        # One of 2000 ms of which 500 were spent runs, and two wait.
        await self.submit("video_running", est_device_ms=2000, limits=BURST)
        await self.step(await self.lease("video_running"), 1, spent_ms=500)
        await self._pay()
        await self.submit("video_waiting", est_device_ms=3000)
        await self.submit("video_relaxed", est_device_ms=4000, wish=Wish(ServiceTier.FLEX))

    async def _end_some(self) -> None:
        await self.submit("video_done", limits=BURST)
        job = await self.lease("video_done")
        await self.step(job, 1)
        await self.leases.complete(job, {})
        await self.submit("video_failed")
        await self.leases.fail(await self.lease("video_failed"), ModelFailed("x"))
        await self.submit("video_cancelled", user=USERS[0])
        await self.queue.cancel("video_cancelled", user=USERS[0])
        await self.submit("video_expired")
        await asyncio.sleep(1.05)
        await Upkeep(self.cell, JobSettings(queue_ttl_s=1)).tidy()

    async def _lose_and_hand_back(self) -> None:
        await self.submit("video_moved", user=USERS[0])
        job = await self.lease("video_moved")
        await self.leases.checkpoint(job, "file", 1, 900)
        await self.step(job, 3)
        await self.leases.give_back(job, step=4)
        job = await self.lease("video_moved")
        await self.leases.resumed(job)
        await self.step(job, 3)
        await Upkeep(self.cell).recover()
        job = await self.lease("video_moved")
        await self.leases.refused(job, CheckpointCorrupt("x"))
        await self.queue.cancel("video_moved", user=USERS[0])

    async def _refuse(self) -> None:
        with pytest.raises(Refused):
            await submit(self.queue, user=USERS[0], limits=Limits(queued_jobs=0))
        key = Wish(idempotency_key="once", body_sha256="a")
        await self.submit("video_once", wish=key, user=USERS[1])
        await self.submit("video_again", wish=key, user=USERS[1])
        await self.queue.delete("video_once", user=USERS[1])

    async def _pay(self) -> None:
        await RedisLedger(self.cell).grant(USERS[0], ref="pay", amount=90_000, kind=Kind.PURCHASE)
        paid: dict[str, Any] = {"user": USERS[0], "limits": PAID, "wish": PRIORITY}
        await self.submit("video_bought", price=4500, **paid)
        await self.leases.complete(await self.lease("video_bought"), {})
        await self.submit("video_returned", price=3000, **paid)
        await self.queue.cancel("video_returned", user=USERS[0])
        await self.submit("video_held", price=2000, **paid)
        await self.submit("video_held_too", price=500, **paid)

    async def _replicas(self) -> None:
        for state in ReplicaStatus:
            replica = Leases(self.cell, MODEL, f"r_{state}")
            start_ms = None if state is ReplicaStatus.STARTING else 20_000
            about: dict[str, Any] = {"host": "host_1", "pid": 7, "slots": 2, "free": 1}
            # The one that leases is the oldest, so it leaves nothing to the idle one.
            age_ms = 1000 if state is ReplicaStatus.BUSY else 0
            await replica.announce(age_ms=age_ms, state=state, start_ms=start_ms, **about)
        broken = Leases(self.cell, MODEL, "r_broken")
        await broken.announce(age_ms=0, state=ReplicaStatus.STARTING, **about)
        await broken.start_failed("OSError")
        await self.leases.tally({"prompt_cache_hits": 5, "prompt_cache_misses": 2})


@pytest_asyncio.fixture
async def everything(cell: Cell, demo_model: Model) -> Everything:
    whole = Everything(cell)
    await whole.happen([demo_model])
    costs = CostModel(demo_model, "a device")
    for _ in range(3):
        costs.observe_encode(0.1)
        costs.observe_step(324, 2, 0.1)
    await CostStore(cell).sync(costs)
    await RedisLedger(cell).note_verified(1)
    await Decisions(cell).write({MODEL: decision(MODEL, target=2, wanted=4, bound="hold")})
    return whole


async def families(client: httpx.AsyncClient) -> dict[str, Metric]:
    text = (await client.get("/metrics")).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def figures(found: dict[str, Metric]) -> dict[str, float]:
    """By name and labels, but for the model, as in ``name{burst,queued}``."""
    values = {}
    for family in found.values():
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "model"]
            values[f"{sample.name}{{{','.join(labels)}}}"] = sample.value
    return values


async def test_every_figure_is_what_happened(
    client: httpx.AsyncClient, everything: Everything
) -> None:
    values = figures(await families(client))
    expected = {
        # Beside the three in the end, two wait that are paid for.
        "reelserve_backlog_jobs{burst,queued}": 2,
        "reelserve_backlog_jobs{burst,in_flight}": 1,
        "reelserve_backlog_jobs{standard,queued}": 1,
        "reelserve_backlog_jobs{relaxed,queued}": 1,
        "reelserve_backlog_jobs{relaxed,in_flight}": 0,
        "reelserve_backlog_gpu_seconds{burst,queued}": 2,
        "reelserve_backlog_gpu_seconds{burst,in_flight}": 1.5,
        "reelserve_backlog_gpu_seconds{standard,queued}": 3,
        "reelserve_backlog_gpu_seconds{relaxed,queued}": 4,
        "reelserve_jobs_admitted_total{burst}": 6,
        "reelserve_jobs_admitted_total{standard}": 6,
        "reelserve_jobs_admitted_total{relaxed}": 1,
        "reelserve_arrivals_gpu_seconds_total{burst}": 7,
        "reelserve_arrivals_gpu_seconds_total{standard}": 8,
        "reelserve_arrivals_gpu_seconds_total{relaxed}": 4,
        "reelserve_jobs_refused_total{own}": 1,
        "reelserve_jobs_refused_total{rate}": 0,
        "reelserve_submissions_replayed_total{}": 1,
        "reelserve_queue_wait_seconds_count{burst}": 3,
        "reelserve_queue_wait_seconds_count{standard}": 2,
        "reelserve_queue_wait_seconds_count{relaxed}": 0,
        "reelserve_first_step_seconds_count{burst}": 3,
        "reelserve_first_step_seconds_count{standard}": 1,
        "reelserve_job_duration_seconds_count{burst}": 2,
        "reelserve_job_duration_seconds_count{standard}": 0,
        "reelserve_job_duration_seconds_bucket{burst,+Inf}": 2,
        "reelserve_slo_jobs_total{burst,first_step,attained}": 2,
        "reelserve_slo_jobs_total{burst,first_step,missed}": 0,
        "reelserve_slo_jobs_total{standard,first_step,missed}": 2,
        "reelserve_slo_jobs_total{standard,done,missed}": 2,
        "reelserve_slo_jobs_total{relaxed,done,attained}": 0,
        "reelserve_jobs_ended_total{completed}": 2,
        "reelserve_jobs_ended_total{failed}": 1,
        "reelserve_jobs_ended_total{expired}": 1,
        "reelserve_jobs_ended_total{cancelled}": 4,
        "reelserve_job_events_total{yielded}": 1,
        "reelserve_job_events_total{lease_lost}": 1,
        "reelserve_job_events_total{resumed}": 1,
        "reelserve_job_events_total{checkpoint_corrupt}": 1,
        "reelserve_steps_redone_total{}": 3,
        "reelserve_steps_lost_total{}": 3,
        "reelserve_replicas{starting}": 1,
        "reelserve_replicas{idle}": 1,
        "reelserve_replicas{busy}": 1,
        "reelserve_replicas{draining}": 1,
        "reelserve_replica_starts_total{ready}": 3,
        "reelserve_replica_starts_total{failed}": 1,
        "reelserve_replica_start_failures{}": 1,
        "reelserve_replica_cold_start_seconds{}": 20,
        "reelserve_prompt_cache_hits_total{}": 5,
        "reelserve_prompt_cache_misses_total{}": 2,
        "reelserve_autoscale_desired_replicas{}": 4,
        "reelserve_autoscale_target_replicas{}": 2,
        "reelserve_autoscale_holding{}": 1,
        "reelserve_autoscale_sample_age_seconds{}": 0.5,
        "reelserve_credits_held{}": 2.5,
        "reelserve_credits_captured_total{}": 4.5,
        "reelserve_credits_released_total{}": 3,
        "reelserve_ledger_differences{}": 1,
    }
    assert {name: values.get(name) for name in expected} == expected
    # Of what nobody promised, nothing is said.
    assert not [name for name in values if "slo_jobs_total{relaxed,first_step" in name]
    assert 0 < values["reelserve_queue_oldest_wait_seconds{burst}"] < 30
    assert 0 <= values["reelserve_replica_start_failure_age_seconds{}"] < 30
    verified_ago_s = time.time() - values["reelserve_ledger_verified_timestamp_seconds{}"]
    assert 0 <= verified_ago_s < 30
    assert 0 <= values["reelserve_autoscale_decision_age_seconds{}"] < 30


async def test_a_pool_of_which_nothing_is_known_says_what_is_certain(
    client: httpx.AsyncClient,
) -> None:
    found = await families(client)
    values = figures(found)
    assert values["reelserve_backlog_jobs{standard,queued}"] == 0
    assert values["reelserve_replica_start_failures{}"] == 0
    assert values["reelserve_job_events_total{lease_lost}"] == 0
    assert values["reelserve_credits_held{}"] == 0
    # A time that was never measured is not 0.
    assert not found["reelserve_replica_cold_start_seconds"].samples
    assert not found["reelserve_replica_start_failure_age_seconds"].samples
    # A ledger that nobody looked at is not right.
    assert not found["reelserve_ledger_differences"].samples


async def test_buckets_reach_an_hour_and_each_has_those_below(
    client: httpx.AsyncClient, everything: Everything
) -> None:
    found = await families(client)
    for name in ("queue_wait", "first_step", "job_duration"):
        samples = found[f"reelserve_{name}_seconds"].samples
        of_burst = [each for each in samples if each.labels["class"] == "burst"]
        buckets = {each.labels["le"]: each.value for each in of_burst if "le" in each.labels}
        assert [float(bound) for bound in buckets] == [*map(float, BUCKETS_S), float("inf")]
        assert max(float(bound) for bound in list(buckets)[:-1]) == 3600
        values = list(buckets.values())
        assert values == sorted(values)
        (count,) = (each.value for each in of_burst if each.name.endswith("_count"))
        assert values[-1] == count


async def test_the_state_carries_the_time_of_redis(
    client: httpx.AsyncClient, redis: Redis, everything: Everything
) -> None:
    before, _ = await redis.time()
    first = figures(await families(client))["reelserve_state_time_seconds{}"]
    await asyncio.sleep(0.05)
    second = figures(await families(client))["reelserve_state_time_seconds{}"]
    assert before <= first < second < before + 60


async def test_prometheus_finds_no_fault_with_any_of_it(
    client: httpx.AsyncClient, everything: Everything
) -> None:
    text = (await client.get("/metrics")).text
    promtool = await asyncio.create_subprocess_exec(
        *(tools.promtool(), "check", "metrics"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await promtool.communicate(text.encode())
    assert (promtool.returncode, said) == (0, b"")


async def test_no_metric_names_a_user_a_job_or_a_replica(
    client: httpx.AsyncClient, everything: Everything
) -> None:
    text = (await client.get("/metrics")).text
    for name in (*everything.ids, *USERS, "video_", "r_busy", "r_starting", "host_1"):
        assert name not in text, name
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    # Three classes of one model, and sixteen buckets: nothing that grows with use.
    assert len(lines) < 300


# The page that lists them.


def documented(heading: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    part = DOCS.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


async def test_the_documentation_lists_each_with_its_type_and_labels(
    client: httpx.AsyncClient, everything: Everything
) -> None:
    listed = {}
    for row in documented("From an ingress"):
        listed[row[0].strip("`")] = (row[1], row[2])
    exported = {}
    for name, family in (await families(client)).items():
        name = f"{name}_total" if family.type == "counter" else name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported[name] = (family.type, labels)
        assert family.documentation, name
    assert {
        name: (kind, set(re.findall(r"\w+", labels))) for name, (kind, labels) in listed.items()
    } == exported


async def test_the_documentation_lists_what_engines_count() -> None:
    rows = documented("From model replicas")
    names = [f"{name}_total" for name in COUNTERS] + [GAUGE[0]]
    assert [row[0].strip("`") for row in rows] == [f"ray_{name}" for name in names]
    assert [row[1].strip("`") for row in rows] == names
    assert [row[2] for row in rows] == ["counter"] * len(COUNTERS) + ["gauge"]


async def test_whatever_the_scripts_count_is_exported() -> None:
    scripts = (DOCS.parents[1] / "serving/jobs/lua").glob("*.lua")
    counted = {
        event
        for script in scripts
        for event in re.findall(r"^ *count\([^,]+, '(\w+)'\)", script.read_text(), re.MULTILINE)
    }
    assert counted
    assert counted <= {*EVENTS, *TALLIES}
    # What a replica finds of a checkpoint is an argument.
    assert {CheckpointCorrupt.code, "resumed"} <= set(EVENTS)
