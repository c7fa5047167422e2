"""`reelserve bench autoscale`, and the simulation that it runs."""

from __future__ import annotations

import json
import math
from statistics import mean, median
from typing import Any

import pytest
from typer.testing import CliRunner

from autoscale.values import Replicas
from deployments.cli.main import app
from loadtest.autoscale import compare
from loadtest.autoscale.cluster import Cluster, Job, Setup, SimulatedPool
from loadtest.autoscale.compare import RULES
from loadtest.autoscale.rules import Concurrency, QueueLength
from loadtest.autoscale.work import LOADS, MEAN_S, cold_start
from loadtest.autoscale.work import jobs as arrivals
from tests.pools import jobs, pool, sample


@pytest.mark.parametrize("as_json", [True, False])
def test_every_rule_meets_every_load(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    monkeypatch.setattr("deployments.cli.bench_autoscale.SECONDS_QUICK", 60.0)
    monkeypatch.setattr(compare, "DRAIN_S", 60.0)
    done = CliRunner().invoke(
        app, ["bench", "autoscale", "--quick", *(["--json"] if as_json else [])]
    )
    assert done.exit_code == 0, done.output
    if as_json:
        value: dict[str, Any] = json.loads(done.stdout)
        assert set(value["loads"]) == set(LOADS)
        assert all(set(found) == set(RULES) for found in value["loads"].values())
        assert "emulated" in value["note"]
    else:
        assert all(name in done.stdout for name in (*LOADS, *RULES))
        assert "Simulated" in done.stdout


def test_the_same_seed_gives_the_same_figures() -> None:
    assert compare.run("bursty", "reelserve", 3, 300.0) == compare.run(
        "bursty", "reelserve", 3, 300.0
    )
    assert compare.run("bursty", "reelserve", 3, 300.0) != compare.run(
        "bursty", "reelserve", 4, 300.0
    )


def test_loads_have_the_traces_figures() -> None:
    works = [job.work_s for seed in range(20) for job in arrivals("steady", seed)]
    assert median(works) == pytest.approx(23, rel=0.05)
    deviation = math.sqrt(mean((work - mean(works)) ** 2 for work in works))
    assert deviation / mean(works) == pytest.approx(0.66, rel=0.1)
    offered = sum(works) / 20 / 4320
    assert offered == pytest.approx(4, rel=0.05)
    assert mean(works) == pytest.approx(MEAN_S, rel=0.05)
    start = cold_start(0)
    assert median(start(0.0) for _ in range(2000)) == pytest.approx(22.7, rel=0.1)


def fixed(n: int) -> Any:
    return lambda samples, replicas, now_s: dict.fromkeys(samples, n)


def in_pool(
    target: int, work: list[Job], setup: Setup | None = None
) -> tuple[Cluster, SimulatedPool]:
    each = SimulatedPool(pool(), setup or Setup(lambda now_s: 10.0), work, target)
    return Cluster({"wan": each}, fixed(target)), each


def test_replicas_do_a_second_of_work_in_a_second() -> None:
    work = jobs(6, 0.0, 20.0)
    cluster, each = in_pool(2, work)
    cluster.run(200)
    assert [job.done_s for job in work] == [30, 30, 50, 50, 70, 70]
    assert each.replica_s == 400


def test_a_higher_class_takes_the_place_of_a_lower_one() -> None:
    long, short = jobs(1, 0.0, 100.0, "relaxed"), jobs(1, 50.0, 10.0, "burst")
    cluster, _ = in_pool(1, long + short)
    cluster.run(200)
    assert (short[0].first_step_s, short[0].done_s) == (50, 60)
    assert (long[0].done_s, long[0].leases) == (120, 2)


def test_serve_removes_the_newest_and_their_jobs_go_on_elsewhere() -> None:
    work = jobs(2, 0.0, 50.0)
    cluster, each = in_pool(2, work)
    cluster.run(30)
    oldest = each.replicas[0]
    cluster.rule = fixed(1)
    cluster.run(200)
    assert each.replicas == [oldest]
    assert [job.done_s for job in work] == [60, 90]


def test_serve_gives_up_after_three_failures_and_forgets_them_at_zero() -> None:
    cluster, each = in_pool(1, [], Setup(lambda now_s: 10.0, fails=lambda now_s: now_s < 100))
    cluster.run(200)
    assert (each.failures, each.given_up, each.replicas) == (3, True, [])
    cluster.rule = fixed(0)
    cluster.run(1)
    cluster.rule = fixed(1)
    cluster.run(20)
    assert (each.failures, len(each.running)) == (0, 1)


def test_the_emulated_rules_do_as_their_models() -> None:
    one = pool()
    queue, concurrency = QueueLength([one]), Concurrency([one])
    busy = {"wan": sample(0.0, busy=4, standard=(7, 70.0, 4, 40.0))}
    have = {"wan": Replicas(4, 4)}
    assert queue(busy, have, 0.0) == {"wan": 4}
    assert queue({"wan": sample(0.0, standard=(9, 90.0))}, {"wan": Replicas(4, 4)}, 1.0)["wan"] == 5
    assert queue({"wan": sample(0.0)}, {"wan": Replicas(5, 5)}, 200.0) == {"wan": 5}
    assert queue({"wan": sample(0.0)}, {"wan": Replicas(5, 5)}, 600.0) == {"wan": 0}
    assert concurrency(busy, have, 0.0) == {"wan": 11}
    assert concurrency({"wan": sample(0.0)}, {"wan": Replicas(11, 11)}, 30.0) == {"wan": 11}
    assert concurrency({"wan": sample(0.0)}, {"wan": Replicas(11, 11)}, 200.0) == {"wan": 0}
