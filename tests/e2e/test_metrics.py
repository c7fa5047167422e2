"""What a running stack exports: its state by an ingress, what its engines did by Ray."""

from __future__ import annotations

import re
import subprocess
import time

import httpx

from deployments.engine_metrics import COUNTERS, GAUGE
from tests import tools
from tests.e2e.stacks import Stack, create, wait_for

SLOW_S = 60
"""Ray hands figures on every ten seconds."""


def scraped(url: str) -> dict[str, float]:
    """By name, the sum over all series of the demo model."""
    found: dict[str, float] = {}
    for line in httpx.get(url, trust_env=False).text.splitlines():
        if 'model="demo-wan"' in line:
            name, value = re.split(r"{.*} ", line)
            found[name] = found.get(name, 0) + float(value)
    return found


def test_an_ingress_says_how_jobs_and_replicas_fare(stack: Stack) -> None:
    with stack.client() as client:
        before = scraped(f"{stack.url}/metrics")
        assert wait_for(client, create(client))["status"] == "completed"
        text = client.get("/metrics").text
    after = scraped(f"{stack.url}/metrics")
    for name in (
        "reelserve_jobs_admitted_total",
        "reelserve_queue_wait_seconds_count",
        "reelserve_first_step_seconds_count",
        "reelserve_job_duration_seconds_count",
    ):
        assert after[name] == before[name] + 1, name
    # Objectives are those of the catalog: of a first step, and of being done.
    assert after["reelserve_slo_jobs_total"] == before["reelserve_slo_jobs_total"] + 2
    assert after["reelserve_replicas"] == 1
    assert 'reelserve_replica_starts_total{model="demo-wan",outcome="failed"} 0.0' in text
    assert after["reelserve_replica_starts_total"] >= 1
    assert 0.5 < after["reelserve_replica_cold_start_seconds"] < 120
    checked = subprocess.run(
        [tools.promtool(), "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_ray_exports_what_engines_did(stack: Stack) -> None:
    steps = 7
    with stack.client() as client:
        assert wait_for(client, create(client, steps=steps))["status"] == "completed"
    names = [f"ray_{name}_total" for name in COUNTERS]
    deadline = time.monotonic() + SLOW_S
    while (found := scraped(stack.engine_metrics_url)).get(names[0], 0) < steps:
        assert time.monotonic() < deadline, found
        time.sleep(1)
    for name in names:
        assert found[name] > 0, name
    assert (
        found["ray_reelserve_engine_batch_rows_total"]
        <= (found["ray_reelserve_engine_batch_rows_capacity_total"])
    )
    assert f"ray_{GAUGE[0]}" in found
