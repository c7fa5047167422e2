"""Model servers that somebody else scales: what the catalog says of them, and what is decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoscale.policy import decide
from autoscale.signals import from_text, samples
from autoscale.values import Budget, Decision, Memory, Replicas
from deployments.application import model_version
from deployments.autoscaling import served_pool
from deployments.settings import StackSettings
from serving.plan.catalog import Model
from serving.plan.errors import ConfigError

SCALING = {"min_replicas": 1, "max_replicas": 8, "cold_start_s": 5}


def stack(folder: Path, *, upscaler: Any = None, speech: Any = None, **settings: Any) -> Any:
    """With the demo model and espeak-ng, changed so."""
    shipped = Path("deployments/catalog")
    for name, part, change in (("demo-wan", "upscaler", upscaler), ("espeak", "scaling", speech)):
        raw = yaml.safe_load((shipped / f"{name}.yaml").read_text())
        if change:
            raw[part] = {**(raw.get(part) or {}), **change}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return StackSettings(catalog_dirs=[folder], **settings)


def test_nothing_is_said_of_servers_that_the_catalog_does_not_scale(tmp_path: Path) -> None:
    assert stack(tmp_path, triton_url="triton:8001").served_pools() == {}


def test_without_a_server_there_is_nothing_to_scale(tmp_path: Path) -> None:
    settings = stack(tmp_path, upscaler={"scaling": SCALING}, speech=SCALING)
    assert settings.served_pools() == {}


def test_what_speaks_and_what_upscales_are_pools_of_their_own(tmp_path: Path) -> None:
    settings = stack(
        tmp_path,
        upscaler={"scaling": SCALING, "s_per_mpixel": 2.0, "wait_s": 4},
        speech=SCALING,
        triton_url="triton:8001",
    )
    found = settings.served_pools()
    assert set(found) == {"espeak", "triton/upscale"}
    assert (found["espeak"].model, found["espeak"].leased) == ("speech", True)
    assert found["espeak"].request_s == pytest.approx(0.105), "of a thousand characters"
    seat = found["triton/upscale"]
    assert (seat.model, seat.url, seat.leased) == ("upscale", "triton:8001", False)
    assert seat.request_s == pytest.approx(4 * 192 * 192 * 2.0 / 1e6), "of four frames"
    pool = served_pool(seat)
    assert pool.objectives_s == {"standard": 4}
    assert (pool.gpus, pool.cpus) == (0, 0), "they are none of ours to share out"


def test_a_server_may_not_go_to_zero_since_nothing_could_wait_there(tmp_path: Path) -> None:
    settings = stack(
        tmp_path, upscaler={"scaling": {**SCALING, "min_replicas": 0}}, triton_url="triton:8001"
    )
    with pytest.raises(ConfigError, match=r"upscaler\.scaling\.min_replicas"):
        settings.served_pools()


def test_an_edit_of_a_servers_scaling_replaces_no_replica(demo_model: Model) -> None:
    assert demo_model.upscaler is not None

    def version(**seat: Any) -> str:
        assert demo_model.upscaler is not None
        raw = {**demo_model.upscaler.model_dump(), **seat}
        changed = {**demo_model.model_dump(), "upscaler": raw}
        return model_version(Model.model_validate(changed))

    assert version(scaling=SCALING) == version()
    assert version(frames=8) != version()


def decided(settings: StackSettings, text: str | None, there: int) -> Decision:
    pool = served_pool(settings.served_pools()["triton/upscale"])
    readings = from_text(text, at_s=100.0) if text else {}
    seen = samples(readings, [pool], {})
    replicas = {pool.name: Replicas(there, there)}
    return decide([pool], seen, replicas, Budget(), Memory(), 1000.0).decisions[pool.name]


def waiting(count: int) -> str:
    return (
        f'nv_inference_pending_request_count{{model="upscale",version="1"}} {count}\n'
        'nv_inference_request_success{model="upscale",version="1"} 0\n'
    )


def test_more_servers_are_wanted_where_requests_wait_and_none_is_given_up_unseen(
    tmp_path: Path,
) -> None:
    # A request takes 2 s and should not wait for more than 10.
    cost = 2 / (4 * 192 * 192 / 1e6)
    settings = stack(
        tmp_path,
        upscaler={"scaling": SCALING, "s_per_mpixel": cost, "wait_s": 10},
        triton_url="triton:8001",
    )
    assert decided(settings, waiting(0), 1).target == 1
    busy = decided(settings, waiting(14), 1)
    # 15 requests of 2 s: one server does 10 s in time, the others have 5 s after they started.
    assert (busy.demand.work_s, busy.demand.jobs) == (30, 15)
    assert (busy.target, busy.bound, busy.demand.by) == (5, "need", "drain")
    assert decided(settings, waiting(200), 1).bound == "max_replicas"
    unseen = decided(settings, None, 3)
    assert (unseen.target, unseen.bound) == (3, "hold")
