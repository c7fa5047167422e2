"""The alerts, by Prometheus's own tool: each fires when it should, is silent when it should, and
says what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.k8s.render import render_rules
from tests import tools
from tests.manifests import K8S, complaints, named, overlay, schemas_folder
from tests.tools import ROOT

MONITORING = K8S / "components/monitoring"
ALERTS = MONITORING / "alerts.yaml"
GROUPS = yaml.safe_load(ALERTS.read_text())["groups"]
RULES: Mapping[str, Mapping[str, Any]] = {
    rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule
}
SLO = 'reelserve_slo_jobs_total{{model="m", class="standard", objective="done", outcome="{}"}}'
WORK = 'reelserve_backlog_gpu_seconds{{model="m", class="standard", state="{}"}}'
HELD = 'reelserve_backlog_jobs{model="m", class="standard", state="in_flight"}'
WANTED = 'reelserve_autoscale_desired_replicas{model="m"}'
TARGET = 'reelserve_autoscale_target_replicas{model="m"}'
EVENT = 'reelserve_job_events_total{{model="m", event="{}"}}'
STATE = "reelserve_state_time_seconds"
VERIFIED = "reelserve_ledger_verified_timestamp_seconds"


@dataclass(frozen=True)
class Case:
    """Series, one value a minute, and when to look."""

    series: Mapping[str, str]
    at: str = "90m"


def attained(rate: int, missed: int) -> Mapping[str, str]:
    return {SLO.format("attained"): f"0+{rate}x600", SLO.format("missed"): f"0+{missed}x600"}


def log(write: int, rewrite: int, enabled: int) -> Mapping[str, str]:
    return {
        "redis_aof_last_write_status": f"{write}x120",
        "redis_aof_last_bgrewrite_status": f"{rewrite}x120",
        "redis_aof_enabled": f"{enabled}x120",
    }


def memory(used: int, most: int) -> Mapping[str, str]:
    return {"redis_memory_used_bytes": f"{used}x120", "redis_memory_max_bytes": f"{most}x120"}


FIRES: Mapping[str, Sequence[Case]] = {
    "ReelserveSloBurnsFast": [Case(attained(4, 6))],
    "ReelserveSloBurnsSlowly": [Case(attained(8, 2), at="8h")],
    "ReelserveBacklogGrowsAtMaximum": [
        Case({WORK.format("queued"): "0+30x120", WANTED: "9x120", TARGET: "4x120"})
    ],
    "ReelserveReplicasDoNotStart": [
        Case({'reelserve_replica_start_failures{model="m"}': "0 1 2 3x120"})
    ],
    "ReelserveAutoscaleHolds": [Case({'reelserve_autoscale_holding{model="m"}': "1x120"})],
    "ReelserveLeasesStuck": [Case({HELD: "2x120", WORK.format("in_flight"): "40x120"})],
    "ReelserveLeasesLost": [Case({EVENT.format("lease_lost"): "0+1x120"})],
    "ReelserveCheckpointsFail": [
        Case({EVENT.format("checkpoint_corrupt"): "0x60 1x60"}),
        Case({EVENT.format("checkpoint_missing"): "0x60 1x60"}),
    ],
    "ReelserveLedgerDiffers": [Case({"reelserve_ledger_differences": "0x60 1x60"})],
    "ReelserveLedgerNotVerified": [Case({VERIFIED: "60x600"}, at="4h")],
    "ReelserveRedisLogFails": [Case(log(0, 1, 1)), Case(log(1, 0, 1)), Case(log(1, 1, 0))],
    "ReelserveRedisIsFull": [Case(memory(90, 100))],
    "ReelserveNoMetrics": [Case({}), Case({STATE: "0+60x30 1800x90"})],
}
SILENT: Mapping[str, Sequence[Case]] = {
    # One of twenty is what the objective allows; and a bad hour that is over is over.
    "ReelserveSloBurnsFast": [
        Case(attained(19, 1)),
        Case({SLO.format("attained"): "0x60 0+10x60", SLO.format("missed"): "0+6x60 366x60"}),
        Case({}),
    ],
    "ReelserveSloBurnsSlowly": [Case(attained(19, 1), at="8h")],
    "ReelserveBacklogGrowsAtMaximum": [
        # It grows and replicas come; it shrinks though more were wanted.
        Case({WORK.format("queued"): "0+30x120", WANTED: "4x120", TARGET: "4x120"}),
        Case({WORK.format("queued"): "9000-30x120", WANTED: "9x120", TARGET: "4x120"}),
    ],
    "ReelserveReplicasDoNotStart": [
        Case({'reelserve_replica_start_failures{model="m"}': "2x85 0x40"})
    ],
    "ReelserveAutoscaleHolds": [
        Case({'reelserve_autoscale_holding{model="m"}': "0x85 1 1 0x40"}),
    ],
    "ReelserveLeasesStuck": [
        Case({HELD: "2x120", WORK.format("in_flight"): "9000-1x120"}),
        Case({HELD: "0x120", WORK.format("in_flight"): "0x120"}),
    ],
    "ReelserveLeasesLost": [Case({EVENT.format("lease_lost"): "0x80 2x40"})],
    "ReelserveCheckpointsFail": [
        Case({EVENT.format("checkpoint_corrupt"): "3x120", EVENT.format("yielded"): "0+5x120"})
    ],
    "ReelserveLedgerDiffers": [Case({"reelserve_ledger_differences": "0x120"}), Case({})],
    "ReelserveLedgerNotVerified": [Case({VERIFIED: "0+60x600"}, at="4h"), Case({})],
    "ReelserveRedisLogFails": [Case(log(1, 1, 1))],
    # Without a maximum nothing can be said.
    "ReelserveRedisIsFull": [Case(memory(80, 100)), Case(memory(90, 0))],
    "ReelserveNoMetrics": [Case({STATE: "0+60x120"})],
}


def firing(folder: Path, alert: str, case: Case) -> bool:
    """Whether it fires then, as promtool sees it."""

    def passes(expected: list[dict[str, Any]]) -> bool:
        test = {
            "interval": "1m",
            "input_series": [{"series": k, "values": v} for k, v in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) > 0',
                    "eval_time": case.at,
                    "exp_samples": expected,
                }
            ],
        }
        file = folder / "test.yaml"
        rules = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}
        file.write_text(yaml.safe_dump(rules))
        done = subprocess.run([tools.promtool(), "test", "rules", file], capture_output=True)
        return done.returncode == 0

    fires, silent = passes([{"labels": "{}", "value": 1.0}]), passes([])
    assert fires != silent, f"{alert}: promtool can say neither"
    return fires


def test_the_rules_are_valid() -> None:
    done = subprocess.run([tools.promtool(), "check", "rules", ALERTS], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_fires_when_it_should(alert: str, tmp_path: Path) -> None:
    for case in FIRES[alert]:
        assert firing(tmp_path, alert, case), case


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_is_silent_when_it_should_be(alert: str, tmp_path: Path) -> None:
    for case in SILENT[alert]:
        assert not firing(tmp_path, alert, case), case


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_says_how_urgent_it_is_and_where_its_page_is(alert: str) -> None:
    rule = RULES[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    page = (ROOT / rule["annotations"]["runbook_url"]).read_text()
    assert f"`{alert}`" in page
    for heading in ("## What users see", "## Look", "## Do"):
        assert heading in page, heading


def test_every_page_is_of_an_alert() -> None:
    named_by_alerts = {rule["annotations"]["runbook_url"] for rule in RULES.values()}
    there = {f"docs/runbooks/{file.name}" for file in (ROOT / "docs/runbooks").glob("*.md")}
    assert there == named_by_alerts


def test_the_clusters_rules_are_these_and_the_recording_ones() -> None:
    assert (MONITORING / "rendered.yaml").read_text() == render_rules(MONITORING), (
        "run `reelserve k8s render`"
    )
    rule = named(overlay("production"), "PrometheusRule", "reelserve")
    assert complaints(rule, schemas_folder()) == []
    recording = ROOT / "autoscale/rules/recording.yaml"
    names = [group["name"] for group in rule["spec"]["groups"]]
    recorded = [group["name"] for group in yaml.safe_load(recording.read_text())["groups"]]
    assert names == recorded + [group["name"] for group in GROUPS]


@pytest.mark.parametrize(
    ("kind", "name", "path", "typo"),
    [
        ("ServiceMonitor", "reelserve", ("endpoints", 0), ("interval", "intervall")),
        ("PodMonitor", "reelserve-ray", (), ("podMetricsEndpoints", "podMetricEndpoints")),
        ("PodMonitor", "reelserve-redis", ("selector",), ("matchLabels", "matchLabel")),
        ("PrometheusRule", "reelserve", ("groups", 1, "rules", 0), ("record", "records")),
    ],
)
def test_a_planted_typo_is_noticed(
    kind: str, name: str, path: tuple[str | int, ...], typo: tuple[str, str]
) -> None:
    manifest = named(overlay("production"), kind, name)
    assert complaints(manifest, schemas_folder()) == []
    place: Any = manifest["spec"]
    for step in path:
        place = place[step]
    place[typo[1]] = place.pop(typo[0])
    assert complaints(manifest, schemas_folder()) != []


def test_monitors_look_at_ports_that_pods_have() -> None:
    manifests = overlay("production")
    text = str(manifests)
    for kind in ("PodMonitor", "ServiceMonitor"):
        for manifest in manifests:
            if manifest["kind"] == kind:
                spec = manifest["spec"]
                for endpoint in spec.get("podMetricsEndpoints", spec.get("endpoints", [])):
                    assert f"'name': '{endpoint['port']}'" in text
