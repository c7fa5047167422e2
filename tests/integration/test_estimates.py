"""What a submission would cost and wait for, against what then becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from redis.asyncio import Redis

from serving.api import Services
from serving.jobs import Cell
from serving.media import open_store
from serving.plan.catalog import Model
from tests.api import as_user, error_of, services_over

pytestmark = pytest.mark.asyncio

BODY = {"prompt": "a red ball", "seconds": 2, "steps": 8}


@pytest.fixture
def services(redis: Redis, tmp_path: Path, demo_model: Model) -> Services:
    tier = {"generations_per_day": 1, "requests_per_minute": 30, "beyond": "refuse"}
    file = tmp_path / "tiers.yaml"
    file.write_text(yaml.safe_dump({"default_tier": "small", "tiers": {"small": tier}}))
    store = open_store((tmp_path / "store").as_uri())
    return services_over(redis, store, demo_model, tiers_file=file)


@pytest_asyncio.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with as_user(services) as client:
        yield client


async def estimated(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post("/v1/estimates", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_what_is_foreseen_is_what_then_happens(
    client: httpx.AsyncClient, services: Services
) -> None:
    foreseen = await estimated(client)
    video = (await client.post("/v1/videos", json=BODY)).json()
    assert foreseen["accepted"] is True
    assert foreseen["refusal"] is None
    for field in ("model", "seconds", "size", "steps", "service_tier", "class", "queue_position"):
        assert foreseen[field] == video[field], field
    assert foreseen["from"] == video["usage"]["from"] == "allowance"
    assert foreseen["eta_seconds"] == pytest.approx(video["eta_seconds"], abs=0.1)
    job = await services.queue.find(video["id"])
    assert job is not None
    assert foreseen["gpu_seconds"] == pytest.approx(job.est_device_ms / 1000, abs=0.001)


async def test_the_price_is_in_proportion_to_length_and_steps(
    client: httpx.AsyncClient, demo_model: Model
) -> None:
    per_s, steps = demo_model.price.per_s, demo_model.video.steps.default
    assert (await estimated(client, seconds=4))["price"] == {"credits": per_s * 32 / steps / 1000}
    longest = await estimated(client, steps=2 * steps, seconds=4)
    assert longest["price"] == {"credits": per_s * 8 / 1000}
    assert (await estimated(client, steps=1))["price"] == {
        "credits": demo_model.price.minimum / 1000
    }


async def test_asking_uses_nothing_up(client: httpx.AsyncClient, cell: Cell) -> None:
    before = set(await cell.redis.keys("*"))
    for _ in range(40):
        assert (await estimated(client))["accepted"]
    assert set(await cell.redis.keys("*")) - before <= {cell.key("ahead")}
    assert (await client.post("/v1/videos", json=BODY)).status_code == 200


async def test_a_refusal_is_foreseen_with_its_reason_and_its_price(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post("/v1/videos", json=BODY)).status_code == 200
    foreseen = await estimated(client)
    refused = error_of(await client.post("/v1/videos", json=BODY), 429)
    assert foreseen["accepted"] is False
    assert foreseen["refusal"]["code"] == refused["code"] == "insufficient_quota"
    assert foreseen["refusal"]["message"].startswith("Your allowance is used up")
    assert foreseen["refusal"]["retry_after_s"] > 0
    assert (foreseen["class"], foreseen["eta_seconds"]) == (None, None)
    assert foreseen["price"]["credits"] > 0


async def test_what_could_never_be_submitted_is_an_error_here_too(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/v1/estimates", json=BODY | {"seconds": 999})
    assert error_of(answer, 400)["param"] == "seconds"
    assert (await client.post("/v1/estimates", json={})).status_code == 400
