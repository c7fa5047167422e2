"""``upscale: 2`` as the API takes it: offered or refused, estimated, priced, and shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.api import Services
from serving.jobs import Cell
from serving.media import open_store
from serving.plan.catalog import Model
from tests.api import as_user, error_of, running_ingress, services_over
from tests.jobs import until
from tests.tools import ROOT
from tests.triton import triton

pytestmark = pytest.mark.asyncio

BODY: dict[str, Any] = {"prompt": "a red ball", "seconds": 2}


@pytest.fixture(scope="module")
def upscaling_model() -> Model:
    """The demo model of a stack that has a Triton server. Nobody asks that here."""
    return StackSettings(triton_url="triton.internal:8001").catalog().resolve("demo-wan")


def services_of(redis: Redis, folder: Path, model: Model, **tier: Any) -> Services:
    file = folder / "tiers.yaml"
    file.write_text(yaml.safe_dump({"default_tier": "one", "tiers": {"one": tier}}))
    return services_over(redis, open_store((folder / "s").as_uri()), model, tiers_file=file)


@pytest_asyncio.fixture
async def client(
    redis: Redis, tmp_path: Path, upscaling_model: Model
) -> AsyncIterator[httpx.AsyncClient]:
    async with as_user(services_of(redis, tmp_path, upscaling_model)) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **changes: Any) -> dict[str, Any]:
    answer = await client.post(path, json=BODY | changes)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_a_video_shows_the_size_that_is_delivered(client: httpx.AsyncClient) -> None:
    plain = await post(client, "/v1/videos")
    twice = await post(client, "/v1/videos", upscale=2)
    assert (plain["size"], plain["upscale"]) == ("96x96", 1)
    assert (twice["size"], twice["upscale"]) == ("192x192", 2)
    wide = await client.post("/v1/videos", data={**BODY, "size": "1280x720", "upscale": "2"})
    assert wide.json()["size"] == "2560x1440"
    again = (await client.get(f"/v1/videos/{twice['id']}")).json()
    assert (again["size"], again["upscale"]) == ("192x192", 2)


async def test_an_estimate_tells_its_price_and_its_time(
    client: httpx.AsyncClient, upscaling_model: Model
) -> None:
    seat = upscaling_model.upscaler
    assert seat is not None
    plain, twice = [await post(client, "/v1/estimates", upscale=factor) for factor in (1, 2)]
    assert twice["price"]["credits"] == plain["price"]["credits"] + 2 * seat.per_s / 1000
    assert (plain["upscale_seconds"], twice["size"]) == (0, "192x192")
    frames = 2 * upscaling_model.video.fps.default
    expected_s = seat.s_per_mpixel * 192 * 192 * frames / 1e6
    assert twice["upscale_seconds"] == pytest.approx(expected_s, abs=0.001)
    assert twice["gpu_seconds"] == plain["gpu_seconds"], "it is another device's time"
    assert twice["eta_seconds"] > plain["eta_seconds"]


async def test_a_model_says_whether_it_is_offered(
    client: httpx.AsyncClient, redis: Redis, tmp_path: Path, demo_model: Model
) -> None:
    assert (await client.get("/v1/models/demo-wan")).json()["upscale"] == [1, 2]
    async with as_user(services_of(redis, tmp_path, demo_model)) as elsewhere:
        assert (await elsewhere.get("/v1/models/demo-wan")).json()["upscale"] == [1]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/estimates"])
async def test_where_it_is_not_offered_it_is_refused_and_costs_nothing(
    redis: Redis, cell: Cell, tmp_path: Path, demo_model: Model, path: str
) -> None:
    without = demo_model.model_copy(update={"upscaler": None})
    for model, says in (
        (demo_model, "no model server is set up"),
        (without, "'demo-wan' has no upscaler"),
    ):
        async with as_user(services_of(redis, tmp_path, model, generations_per_day=1)) as ann:
            before = set(await redis.keys("*"))
            error = error_of(await ann.post(path, json=BODY | {"upscale": 2}), 400)
            assert (error["code"], error["param"]) == ("unsupported_parameter", "upscale")
            assert says in error["message"]
            assert "Leave it out" in error["message"]
            assert set(await redis.keys("*")) == before
            assert (await post(ann, "/v1/estimates", upscale=1))["accepted"]


@pytest.mark.parametrize("factor", [0, 3, -2])
async def test_another_factor_is_out_of_range(client: httpx.AsyncClient, factor: int) -> None:
    error = error_of(await client.post("/v1/videos", json=BODY | {"upscale": factor}), 400)
    assert (error["code"], error["param"]) == ("out_of_range", "upscale")
    assert "1 (not at all) or 2" in error["message"]


async def test_a_tiers_sizes_are_those_that_are_delivered(
    redis: Redis, tmp_path: Path, upscaling_model: Model
) -> None:
    services = services_of(redis, tmp_path, upscaling_model, sizes=["96x96"])
    async with as_user(services) as ann:
        await post(ann, "/v1/videos")
        error = error_of(await ann.post("/v1/videos", json=BODY | {"upscale": 2}), 403)
        assert error["code"] == "size_not_allowed"
        assert "192x192" in error["message"]


@pytest.fixture
def stack(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> StackSettings:
    """``redis``: it begins with an empty one."""
    return StackSettings(
        redis_url=SecretStr(redis_server.url), data_dir=tmp_path, admin_key=SecretStr("admin")
    )


def entry_with(upscaler: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a stack whose demo model has this one."""
    (folder / "catalog").mkdir()
    entry = yaml.safe_load((ROOT / "deployments" / "catalog" / "demo-wan.yaml").read_text())
    entry["upscaler"] |= upscaler
    (folder / "catalog" / "demo-wan.yaml").write_text(yaml.safe_dump(entry))
    return {"catalog_dirs": [folder / "catalog"]}


async def test_the_upscalers_server_is_part_of_readiness(
    stack: StackSettings, tmp_path: Path
) -> None:
    """Nobody is told of it before it was there; who was told learns when it is lost."""
    with triton(tmp_path / "triton", "upscale") as server:
        settings = stack.model_copy(update=entry_with({"url": server.url}, tmp_path))
        server.kill()
        with running_ingress(settings) as url:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:

                async def all_there() -> bool:
                    """A connection is tried again within a second."""
                    return bool((await http.get("/readyz")).json() == {"status": "ready"})

                error = error_of(await http.get("/readyz"), 503)
                assert error["code"] == "model_server_unreachable"
                assert server.url in error["message"]
                await asyncio.to_thread(server.start)
                await until(all_there)
                server.kill()
                gone = await http.get("/readyz")
                assert gone.status_code == 200
                assert gone.json() == {"status": "ready", "triton/upscale": "away"}
                await asyncio.to_thread(server.start)
                await until(all_there)


async def test_a_stack_is_not_ready_while_its_upscaler_is_another_kind_of_model(
    stack: StackSettings, tmp_path: Path
) -> None:
    with triton(tmp_path / "triton", "classify") as server:
        at = {"model": "classify", "url": server.url}
        settings = stack.model_copy(update=entry_with(at, tmp_path))
        with running_ingress(settings) as url:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                error = error_of(await http.get("/readyz"), 503)
    assert error["code"] == "config_error"
    assert "it has no output UPSCALED" in error["message"]
    assert "leave the `upscaler` out" in error["message"]


async def test_all_that_a_server_lacks_is_said_at_once(
    stack: StackSettings, tmp_path: Path
) -> None:
    with triton(tmp_path / "triton", "classify") as server:
        settings = stack.model_copy(update={"triton_url": server.url})
        with running_ingress(settings) as url:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                error = error_of(await http.get("/readyz"), 503)
    for name in ("speech", "upscale"):
        assert f"'{name}' is not served at {server.url}" in error["message"]
