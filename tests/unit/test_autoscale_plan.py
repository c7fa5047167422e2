"""What the policy works with: the catalog as it is now, and the operator's budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscale.settings import AutoscaleSettings
from autoscale.values import Budget, Scaling
from deployments.application import serve_config
from deployments.autoscaling import LOOK_EVERY_S, RELAXED_S, CatalogPlan
from deployments.settings import StackSettings

ROOT = Path(__file__).parents[2]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def write(folder: Path, **scaling: Any) -> None:
    """The demo model, scaled like this; by replacing the file, as editors do."""
    entry = yaml.safe_load((ROOT / "deployments/catalog/demo-wan.yaml").read_text())
    entry["scaling"] = scaling or None
    new = folder / "new"
    new.write_text(yaml.safe_dump(entry))
    os.replace(new, folder / "demo-wan.yaml")


@pytest.fixture
def stack(tmp_path: Path) -> StackSettings:
    write(tmp_path, max_replicas=3)
    return StackSettings(catalog_dirs=[tmp_path])


def test_a_pool_has_its_knobs_objectives_resources_and_price(stack: StackSettings) -> None:
    plan = CatalogPlan(stack, AutoscaleSettings(cpus_max=4)).current()
    (pool,) = plan.pools
    assert pool.name == "demo-wan"
    assert pool.scaling == Scaling(max_replicas=3)
    assert list(pool.objectives_s.items()) == [
        ("burst", 5),
        ("standard", 20),
        ("relaxed", RELAXED_S),
    ]
    assert (pool.gpus, pool.cpus) == (0, 1)
    assert pool.price > 0
    assert plan.budget == Budget(gpus=None, cpus=4)


def test_an_edit_counts_within_seconds_and_a_mistake_changes_nothing(
    stack: StackSettings, tmp_path: Path
) -> None:
    clock = Clock()
    plan = CatalogPlan(stack, AutoscaleSettings(), clock)
    # When the file is edited, and nobody has looked again yet
    write(tmp_path, min_replicas=1, max_replicas=5)
    assert plan.current().pools[0].scaling.max_replicas == 3
    # Then it counts at the next look
    clock.now_s += LOOK_EVERY_S
    assert plan.current().pools[0].scaling == Scaling(min_replicas=1, max_replicas=5)
    # And a mistake leaves it as it was
    write(tmp_path, min_replicas=9, max_replicas=5)
    clock.now_s += LOOK_EVERY_S
    assert plan.current().pools[0].scaling == Scaling(min_replicas=1, max_replicas=5)
    # And a pool that is not to be scaled any more is left alone
    write(tmp_path)
    clock.now_s += LOOK_EVERY_S
    assert plan.current().pools == []


def test_an_edit_of_scaling_changes_nothing_that_serve_sees(
    stack: StackSettings, tmp_path: Path
) -> None:
    before = serve_config(stack)
    write(tmp_path, min_replicas=1, max_replicas=5, buffer=1)
    assert serve_config(stack) == before


def test_scaling_can_be_switched_off(stack: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    (app,) = serve_config(stack)["applications"]
    assert app["autoscaling_policy"]
    assert "num_replicas" not in app["deployments"][1]
    monkeypatch.setenv("REELSERVE_AUTOSCALE_ENABLED", "false")
    (app,) = serve_config(stack)["applications"]
    assert "autoscaling_policy" not in app
    assert app["deployments"][1]["num_replicas"] == 1
