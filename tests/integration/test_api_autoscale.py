"""What the API says of the autoscaler's decisions: to operators, and to Prometheus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from autoscale.values import Demand, Scaling
from serving.api import Services
from serving.media import open_store
from serving.plan.catalog import Catalog, Model, ScalingPolicy, ServerScaling
from serving.plan.served import ServedPool
from tests.api import ADMIN, error_of, services_over, serving
from tests.decisions import decision

pytestmark = pytest.mark.asyncio

LAST, HISTORY = "/v1/admin/autoscale", "/v1/admin/autoscale/history"


@pytest.fixture
def services(redis: Redis, tmp_path: Path, demo_model: Model) -> Services:
    """Of a catalog with one model that is scaled, and one that is not."""
    services = services_over(redis, open_store(tmp_path.as_uri()), demo_model)
    scaled = demo_model.model_copy(update={"scaling": ScalingPolicy(max_replicas=4, buffer=1)})
    fixed = demo_model.model_copy(update={"id": "fixed", "aliases": [], "scaling": None})
    return replace(services, catalog=Catalog([scaled, fixed]))


@pytest_asyncio.fixture
async def operator(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(services) as client:
        client.headers["authorization"] = f"Bearer {ADMIN}"
        yield client


async def metrics(client: httpx.AsyncClient) -> dict[str, dict[str, float]]:
    """The autoscaler's, by name and model."""
    text = (await client.get("/metrics")).text
    return {
        family.name.removeprefix("reelserve_autoscale_"): {
            sample.labels["model"]: sample.value for sample in family.samples
        }
        for family in text_string_to_metric_families(text)
        if family.name.startswith("reelserve_autoscale_")
    }


async def test_decisions_are_for_the_operator(services: Services) -> None:
    _, key = await services.keys.create("ann")
    async with serving(services) as client:
        for path in (LAST, HISTORY):
            error_of(await client.get(path), 401)
            error_of(await client.get(path, headers={"authorization": f"Bearer {key}"}), 403)


async def test_before_the_first_decision_it_says_what_is_scaled(
    operator: httpx.AsyncClient,
) -> None:
    answer = (await operator.get(LAST)).json()
    assert answer["object"] == "autoscale"
    scaled, fixed = answer["pools"]
    assert scaled["decision"] is fixed["decision"] is None
    assert (scaled["model"], scaled["replicas"]) == ("demo-wan", None)
    assert (scaled["scaling"]["max_replicas"], scaled["scaling"]["buffer"]) == (4, 1)
    assert (fixed["model"], fixed["scaling"], fixed["replicas"]) == ("fixed", None, 1)
    assert (await operator.get(HISTORY)).json() == {"object": "list", "data": []}


async def test_the_last_decision_is_shown_with_all_that_led_to_it(
    operator: httpx.AsyncClient, services: Services
) -> None:
    await services.decisions.write({"demo-wan": decision(), "of-an-old-catalog": decision()})
    shown = (await operator.get(LAST)).json()["pools"]
    assert [pool["model"] for pool in shown] == ["demo-wan", "fixed"]
    found = shown[0]["decision"]
    figures = {name: found[name] for name in ("target", "before", "ready", "wanted", "bound")}
    assert figures == {"target": 4, "before": 1, "ready": 1, "wanted": 4, "bound": "need"}
    assert found["why"].startswith("132.5 GPU-seconds in 8 jobs")
    assert 0 <= found["age_s"] < 60
    assert found["demand"]["critical"] == "standard"
    assert found["budget"] == {"gpus": None, "cpus": 8.0}
    assert found["sample"]["busy"] == 1
    burst, standard = found["classes"]
    assert (burst["class"], burst["queued_s"], burst["objective_s"]) == ("burst", 30.0, 30.0)
    assert (standard["class"], standard["in_flight_s"]) == ("standard", 12.5)


async def test_what_the_operator_says_now_is_newer_than_the_catalog(
    operator: httpx.AsyncClient, services: Services
) -> None:
    edited = decision(scaling=Scaling(min_replicas=1, max_replicas=9))
    await services.decisions.write({"demo-wan": edited, "fixed": edited})
    scaled, fixed = (await operator.get(LAST)).json()["pools"]
    assert (scaled["scaling"]["min_replicas"], scaled["scaling"]["max_replicas"]) == (1, 9)
    assert fixed["scaling"] is fixed["decision"] is None


async def test_where_autoscaling_is_off_old_decisions_do_not_count(services: Services) -> None:
    await services.decisions.write({"demo-wan": decision()})
    async with serving(replace(services, autoscaling=False)) as client:
        client.headers["authorization"] = f"Bearer {ADMIN}"
        pool = (await client.get(LAST)).json()["pools"][0]
        assert (pool["scaling"], pool["replicas"], pool["decision"]) == (None, 1, None)
        assert not any((await metrics(client)).values())


async def test_one_model_can_be_named_by_its_alias(operator: httpx.AsyncClient) -> None:
    (pool,) = (await operator.get(LAST, params={"model": "sora-2"})).json()["pools"]
    assert pool["model"] == "demo-wan"
    unknown = error_of(await operator.get(LAST, params={"model": "sora-9"}), 400)
    assert unknown["code"] == "model_not_found"


async def test_a_pool_that_a_model_server_does_is_shown_and_exported(services: Services) -> None:
    served = ServedPool(
        id="triton/upscale",
        model="upscale",
        url="triton:8001",
        request_s=0.03,
        scaling=ServerScaling(max_replicas=4),
        leased=False,
        objectives_s={"standard": 10.0},
    )
    services = replace(services, served={served.id: served})
    await services.decisions.write({served.id: decision(target=3, wanted=3)})
    async with serving(services) as client:
        client.headers["authorization"] = f"Bearer {ADMIN}"
        everything = (await client.get(LAST)).json()["pools"]
        assert [pool["model"] for pool in everything] == ["demo-wan", "fixed", "triton/upscale"]
        (pool,) = (await client.get(LAST, params={"model": "triton/upscale"})).json()["pools"]
        assert pool["server"] == {"model": "upscale", "url": "triton:8001", "request_s": 0.03}
        assert (pool["decision"]["target"], pool["replicas"]) == (3, None)
        assert (await metrics(client))["target_replicas"] == {"triton/upscale": 3}
    async with serving(replace(services, autoscaling=False)) as client:
        client.headers["authorization"] = f"Bearer {ADMIN}"
        assert len((await client.get(LAST)).json()["pools"]) == 2
        assert not any((await metrics(client)).values())


async def test_the_history_is_the_newest_first(
    operator: httpx.AsyncClient, services: Services
) -> None:
    for target in (1, 2, 3):
        await services.decisions.write({"demo-wan": decision(target=target)})
    data = (await operator.get(HISTORY, params={"limit": 2})).json()["data"]
    assert [line["pools"]["demo-wan"]["target"] for line in data] == [3, 2]
    assert data[0]["at_ms"] >= data[1]["at_ms"]
    for limit in (0, 901, "all"):
        assert (
            error_of(await operator.get(HISTORY, params={"limit": limit}), 400)["param"] == "limit"
        )


async def test_decisions_are_metrics(operator: httpx.AsyncClient, services: Services) -> None:
    assert not any((await metrics(operator)).values())
    await services.decisions.write(
        {"demo-wan": decision(target=2, wanted=4), "of-an-old-catalog": decision()}
    )
    found = await metrics(operator)
    age_s = found.pop("decision_age_seconds")
    assert age_s.keys() == {"demo-wan"}
    assert found == {
        "desired_replicas": {"demo-wan": 4},
        "target_replicas": {"demo-wan": 2},
        "holding": {"demo-wan": 0},
        "sample_age_seconds": {"demo-wan": 0.5},
    }


async def test_a_pool_that_holds_says_so(operator: httpx.AsyncClient, services: Services) -> None:
    held = decision(bound="hold", sample=None, sample_age_s=None, demand=Demand())
    await services.decisions.write({"demo-wan": held})
    found = await metrics(operator)
    assert found["holding"] == {"demo-wan": 1}
    assert found["sample_age_seconds"] == {}
