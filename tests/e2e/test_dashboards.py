"""Every panel of every dashboard shows something of a real run, to a real Prometheus."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stacks import create, up, wait_for
from tests.manifests import K8S, named, overlay
from tests.prometheus import Prometheus, prometheus

DASHBOARDS = sorted((K8S / "components/monitoring/dashboards").glob("*.json"))
METRIC = re.compile(r"\b(?:ray|reelserve|model|class)[a-z_]*(?::[a-z0-9_]+)*(?=[{\[ )]|$)")
VARIABLES = {"$namespace": ".*", "$model": ".*", "$__rate_interval": "30s"}
SEEN_S_MAX = 60
"""Ray hands figures on every ten seconds, and a rate takes two."""


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen a stack at work, and its books looked at."""
    folder = tmp_path_factory.mktemp("dashboards")
    with up(folder / "data", env={"REELSERVE_AUTOSCALE_ENABLED": "true"}) as stack:
        addresses = {"reelserve": stack.url, "ray": stack.engine_metrics_url}
        jobs = {name: [url.split("/")[2]] for name, url in addresses.items()}
        with prometheus(folder / "prometheus", jobs) as running, stack.client() as client:
            admin = {"authorization": f"Bearer {stack.admin_key}"}
            client.post("/v1/admin/ledger/verify", headers=admin).raise_for_status()
            deadline = time.monotonic() + SEEN_S_MAX
            while not (
                running.query("rate(ray_reelserve_engine_steps_total[30s]) > 0")
                and running.query("increase(reelserve_jobs_ended_total[1h]) > 0")
                and running.query("class:reelserve_slo_missed:ratio_rate6h")
            ):
                assert time.monotonic() < deadline
                assert wait_for(client, create(client, steps=20))["status"] == "completed"
                time.sleep(1)
            yield running


def dashboard(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def metrics_of(expression: str) -> set[str]:
    """The metrics that it names, without the labels that it groups by."""
    bare = re.sub(r"\bby \([^)]*\)|\{[^}]*\}|\"[^\"]*\"", "", expression)
    return {name for name in METRIC.findall(bare) if "_" in name}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_panel_shows_something(file: Path, watching: Prometheus) -> None:
    known, panels = watching.names(), dashboard(file)["panels"]
    unknown, empty = [], []
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            names = metrics_of(expression)
            assert names, expression
            unknown += [name for name in names if name not in known]
            if not watching.query(expression):
                empty.append(f"{panel['title']}: {expression}")
    assert (unknown, empty) == ([], [])


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file: Path) -> None:
    board = dashboard(file)
    assert board["uid"] == f"reelserve-{file.stem}"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [panel["gridPos"] for panel in board["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for panel in board["panels"]:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_a_metric_that_is_misspelt_or_shows_nothing_would_be_noticed(watching: Prometheus) -> None:
    assert metrics_of('sum by (model) (rate(reelserve_stepz_total{a="reelserve_x"}[5m])) / 2') == {
        "reelserve_stepz_total"
    }
    assert "reelserve_stepz_total" not in watching.names()
    assert not watching.query('reelserve_replicas{state="bussy"}')


def test_the_cluster_has_every_dashboard() -> None:
    there = named(overlay("production"), "ConfigMap", "reelserve-dashboards")
    assert there["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(there["data"]) == {file.name for file in DASHBOARDS}
