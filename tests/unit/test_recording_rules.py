"""The recording rules, by Prometheus's own tool: they are valid, and say what replicas exported."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscale.signals import SIGNALS, Signal
from deployments.engine_metrics import COUNTERS, GAUGE
from tests import tools

ROOT = Path(__file__).parents[2]
RULES = ROOT / "autoscale" / "rules" / "recording.yaml"
COUNTED = 'device="cpu", WorkerId="{worker}", Component="core_worker", NodeAddress="10.0.0.1"'


def test_rules_are_valid() -> None:
    done = subprocess.run([tools.promtool(), "check", "rules", RULES], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_each_engine_metric_has_one_name_that_does_not_say_ray() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}
    exported = [f"{name}_total" for name in COUNTERS] + [GAUGE[0]]
    assert [name for name in rules if name.startswith("reelserve_")] == exported
    for name in exported:
        assert f"(ray_{name})" in rules[name]


def series(name: str, worker: str, values: str, model: str = "m") -> dict[str, Any]:
    labels = COUNTED.format(worker=worker)
    return {"series": f'ray_{name}{{model="{model}", {labels}}}', "values": values}


def check(
    folder: Path, given: list[dict[str, Any]], expected: dict[tuple[str, str], dict[str, float]]
) -> None:
    """``expected``: by expression and time, what it is by labels."""
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": given,
                "promql_expr_test": [
                    {
                        "expr": expression,
                        "eval_time": at,
                        "exp_samples": [
                            {"labels": labels, "value": value} for labels, value in samples.items()
                        ],
                    }
                    for (expression, at), samples in expected.items()
                ],
            }
        ],
    }
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run([tools.promtool(), "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_replicas_counted_goes_by_one_name(tmp_path: Path) -> None:
    given = [
        series("reelserve_engine_steps_total", "a", "0+30x40"),
        series("reelserve_engine_steps_total", "b", "0+15x40", model="other"),
        series("reelserve_engine_runs", "a", "2x40"),
        series("reelserve_engine_runs", "b", "1x40"),
    ]
    steps = 'reelserve_engine_steps_total{{model="{}", device="cpu", WorkerId="{}"}}'
    expected = {
        ("reelserve_engine_steps_total", "5m"): {
            steps.format("m", "a"): 600.0,
            steps.format("other", "b"): 300.0,
        },
        ("reelserve_engine_runs", "5m"): {'reelserve_engine_runs{model="m", device="cpu"}': 3.0},
        ("model:reelserve_engine_steps:rate5m", "10m"): {
            'model:reelserve_engine_steps:rate5m{model="m"}': 2.0,
            'model:reelserve_engine_steps:rate5m{model="other"}': 1.0,
        },
    }
    check(tmp_path, given, expected)


def test_rows_and_time_are_parts_of_what_there_was(tmp_path: Path) -> None:
    given = [
        series("reelserve_engine_forwards_total", "a", "0+10x40"),
        series("reelserve_engine_step_seconds_total", "a", "0+12x40"),
        series("reelserve_engine_step_seconds_total", "b", "0+0x40"),
        series("reelserve_engine_batch_rows_total", "a", "0+30x40"),
        series("reelserve_engine_batch_rows_capacity_total", "a", "0+40x40"),
    ]
    names = {
        "model:reelserve_engine_forward_seconds:mean5m": 1.2,
        "model:reelserve_engine_busy:ratio_rate5m": 0.4,
        "model:reelserve_engine_batch_rows:ratio_rate5m": 0.75,
    }
    check(
        tmp_path,
        given,
        {(f"round({name}, 0.001)", "10m"): {'{model="m"}': value} for name, value in names.items()},
    )


@pytest.mark.parametrize("left", ["0+30x12 stale", "0+30x12 _x28"])
def test_a_replica_that_leaves_makes_no_steps_appear(tmp_path: Path, left: str) -> None:
    given = [
        series("reelserve_engine_steps_total", "a", "0+30x40"),
        series("reelserve_engine_steps_total", "b", left),
    ]
    rate = "sum by (model) (rate(reelserve_engine_steps_total[1m]))"
    # Once it is gone for a while, the other's are left: never more than both together.
    expected = {(rate, "2m"): {'{model="m"}': 4.0}, (rate, "10m"): {'{model="m"}': 2.0}}
    most = {(f"max_over_time(({rate})[10m:15s]) <= 4", "10m"): {'{model="m"}': 4.0}}
    check(tmp_path, given, {**expected, **most})


def test_the_scrape_configuration_is_valid_and_has_the_rules() -> None:
    config = ROOT / "autoscale" / "prometheus.yaml"
    done = subprocess.run([tools.promtool(), "check", "config", config], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"1 rule files found" in done.stdout
    jobs = yaml.safe_load(config.read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["reelserve", "ray", "triton"]


def of_triton(metric: str, server: str, values: str) -> dict[str, Any]:
    labels = f'model="upscale", version="1", instance="{server}:8002"'
    return {"series": f"{metric}{{{labels}}}", "values": values}


def test_what_waits_in_triton_is_recorded_over_all_servers(tmp_path: Path) -> None:
    waiting = "nv_inference_pending_request_count"
    given = [
        of_triton(waiting, "a", "3x40"),
        of_triton(waiting, "b", "2x20 stale"),
        of_triton("nv_inference_request_success", "a", "0+30x40"),
        of_triton("nv_inference_exec_count", "a", "0+10x40"),
        of_triton("nv_inference_queue_duration_us", "a", "0+60000000x40"),
    ]
    names = ("waiting_requests:sum", "queue_seconds:mean5m", "batch_requests:mean5m")
    total, queue_s, batch = (f"model:triton_{name}" for name in names)
    check(
        tmp_path,
        given,
        {
            (total, "4m"): {f'{total}{{model="upscale"}}': 5.0},
            (total, "8m"): {f'{total}{{model="upscale"}}': 3.0},
            (f"round({queue_s}, 0.001)", "8m"): {'{model="upscale"}': 2.0},
            (f"round({batch}, 0.001)", "8m"): {'{model="upscale"}': 3.0},
        },
    )


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.promql({}))
def test_every_signal_of_the_autoscaler_is_a_query(signal: Signal, tmp_path: Path) -> None:
    """With and without a series: no series is no sample, and never zero."""
    labels = dict.fromkeys(signal.by, "x") | dict(signal.where)
    text = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    given = [{"series": f"{signal.metric}{{{text}}}", "values": "3x4 stale"}]
    by = ", ".join(f'{name}="x"' for name in signal.by)
    value = {"count": 1.0, "read": 60.0}.get(signal.fold, 3.0)
    query = signal.promql({})
    check(tmp_path, given, {(query, "1m"): {f"{{{by}}}": value}, (query, "3m"): {}})
