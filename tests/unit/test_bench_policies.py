"""`reelserve bench policies`, and the side of it that runs on the real engine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deployments.cli.main import app
from loadtest.policies.compare import POLICIES
from loadtest.policies.engine_run import (
    Leasing,
    OneByOne,
    beside_real_time,
    in_real_time,
    measure,
)
from loadtest.policies.reelserve import Reelserve
from loadtest.policies.work import KINDS, MID, SMALL, Costs, Job, rows_of

COSTS = Costs(
    {"small": 0.006, "mid": 0.006, "long": 0.007},
    {
        "small": {2: 0.0064, 4: 0.0093, 8: 0.0153, 16: 0.0257},
        "mid": {2: 0.028, 4: 0.056},
        "long": {2: 0.508},
    },
)


def bench(*args: str) -> Result:
    return CliRunner().invoke(app, ["bench", "policies", "--seeds", "1", "--jobs", "100", *args])


@pytest.fixture
def costs_file(tmp_path: Path) -> Path:
    """As an earlier run printed it."""
    file = tmp_path / "before.json"
    file.write_text(json.dumps({"costs": COSTS.to_json()}))
    return file


def test_json_is_one_value_with_every_figure_by_policy(costs_file: Path) -> None:
    done = bench("--costs", str(costs_file), "--json")
    assert done.exit_code == 0, done.output
    value: dict[str, Any] = json.loads(done.stdout)
    for figure in ("slo_attainment", "small_p95_s", "long_p95_s"):
        assert list(value[figure]) == list(POLICIES)
    assert value["costs"] == COSTS.to_json()
    assert "emulated" in value["note"]
    assert set(value["target"]["met"]) == {
        "slo_attainment",
        "small_p95_vs_serve_batch",
        "long_p95_vs_fifo",
    }


def test_the_table_has_a_row_for_each_policy(costs_file: Path) -> None:
    done = bench("--costs", str(costs_file))
    assert done.exit_code == 0, done.output
    for name in POLICIES:
        assert f"\n{name} " in done.stdout
    assert "Simulated" in done.stdout


def test_costs_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"p50_ms": 3}')
    done = bench("--costs", str(file), "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == "benchmark_failed"


def test_costs_are_measured_for_every_forward_of_the_mix() -> None:
    found = measure(lambda text: None, rounds=1)
    for kind in KINDS:
        assert list(found.step_s[kind.name]) == rows_of(kind)
        assert found.encode_s[kind.name] > 0
        assert 0 < found.step_s[kind.name][2] < math.inf


@pytest.mark.parametrize("name", ["fifo", "reelserve"])
def test_the_real_engine_ends_every_job(name: str) -> None:
    policy: Leasing = OneByOne() if name == "fifo" else Reelserve(COSTS)
    jobs = [Job(0, MID, 6, 0.0), Job(1, SMALL, 4, 0.0), Job(2, SMALL, 5, 0.05)]
    assert 0 < in_real_time(policy, COSTS, jobs) < math.inf
    done = [job.done_s for job in jobs]
    assert all(job.created_s < job.done_s < math.inf for job in jobs)
    assert [job.step for job in jobs] == [6, 4, 5]
    if name == "fifo":
        assert done == sorted(done)
    else:
        assert done[1] < done[0]


def test_a_run_in_real_time_stands_beside_the_same_jobs_simulated() -> None:
    fast = COSTS.slowed(0.001)
    found = beside_real_time(fast, 0.8, 0.0067, lambda text: None)
    assert set(found["policies"]) == {"reelserve", "fifo"}
    for both in found["policies"].values():
        assert both["engine"].keys() == both["simulated"].keys()
        assert both["engine"]["mean_s"] > 0
