"""Credits over HTTP: seen, given, spent, and accounted for."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from redis.asyncio import Redis

from quota.ledger import Kind
from serving.api import Services
from serving.jobs import Cell, Leases
from serving.media import open_store
from serving.plan.catalog import Model
from serving.plan.errors import ModelFailed
from tests.api import ADMIN, as_user, error_of, services_over
from tests.jobs import leased

pytestmark = pytest.mark.asyncio

BODY = {"prompt": "a red ball", "seconds": 1, "steps": 2}
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}


@pytest.fixture
def services(redis: Redis, tmp_path: Path, demo_model: Model) -> Services:
    file = tmp_path / "tiers.yaml"
    tiers = {
        "small": {"generations_per_day": 0, "beyond": "refuse"},
        "buyer": {"generations_per_day": 0, "beyond": "credits"},
    }
    file.write_text(yaml.safe_dump({"default_tier": "small", "tiers": tiers}))
    store = open_store((tmp_path / "store").as_uri())
    return services_over(redis, store, demo_model, tiers_file=file)


@pytest_asyncio.fixture
async def ann(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with as_user(services) as client:
        yield client


async def give(client: httpx.AsyncClient, amount: float, user: str = "ann", **more: Any) -> Any:
    body = {"amount": amount, "reason": "a test", **more}
    answer = await client.post(f"/v1/admin/credits/{user}", json=body, headers=AS_ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def credits_of(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/v1/credits")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def price_of(client: httpx.AsyncClient) -> float:
    outlook = (await client.post("/v1/estimates", json=BODY)).json()
    return float(outlook["price"]["credits"])


async def test_who_has_none_is_told_so(ann: httpx.AsyncClient) -> None:
    none = {"object": "credits", "user": "ann", "balance": 0, "held": 0, "debt": 0, "grants": []}
    assert await credits_of(ann) == none
    page = (await ann.get("/v1/credits/ledger")).json()
    assert (page["data"], page["has_more"]) == ([], False)


async def test_a_clip_is_paid_from_credits_and_they_are_accounted_for(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    price = await price_of(ann)
    assert price > 0
    await give(ann, 100, ref="welcome", kind="promotion", expires_at=4_000_000_000)
    body = BODY | {"max_credits": price}
    foreseen = (await ann.post("/v1/estimates", json=body)).json()
    assert (foreseen["accepted"], foreseen["from"]) == (True, "credits")
    video = (await ann.post("/v1/videos", json=body)).json()
    assert (video["class"], video["usage"]["from"]) == ("burst", "credits")
    assert video["usage"]["credits"] == price
    now = await credits_of(ann)
    assert (now["balance"], now["held"]) == (pytest.approx(100 - price), price)
    (grant,) = now["grants"]
    assert (grant["ref"], grant["kind"], grant["amount"]) == ("welcome", "promotion", 100)
    assert grant["expires_at"] == 4_000_000_000

    made = {"artifacts": {"video": {"size_bytes": 1}}, "stages": {}}
    await leases.fail(await leased(leases), ModelFailed("x"))
    video = (await ann.get(f"/v1/videos/{video['id']}")).json()
    assert (video["status"], video["usage"]["credits"]) == ("failed", 0)
    assert (await credits_of(ann))["balance"] == 100

    again = (await ann.post("/v1/videos", json=body | {"seed": 2})).json()
    await leases.complete(await leased(leases), made)
    job = await services.queue.get(again["id"], user="ann")
    assert job.credits == round(1000 * price)
    now = await credits_of(ann)
    assert (now["balance"], now["held"]) == (pytest.approx(100 - price), 0)

    page = (await ann.get("/v1/credits/ledger", params={"limit": 3})).json()
    assert [entry["type"] for entry in page["data"]] == ["capture", "hold", "release"]
    assert page["data"][1]["change"] == {"available": -price, "held": price, "debt": 0}
    assert page["has_more"]
    rest = (await ann.get("/v1/credits/ledger", params={"after": page["last_id"]})).json()
    assert [entry["type"] for entry in rest["data"]] == ["hold", "grant"]
    assert rest["data"][-1]["reason"] == "a test"
    assert not rest["has_more"]


async def test_a_refusal_names_the_price_and_what_there_is(
    ann: httpx.AsyncClient, services: Services
) -> None:
    price = await price_of(ann)
    answer = await ann.post("/v1/videos", json=BODY | {"service_tier": "priority"})
    error = error_of(answer, 429)
    assert error["code"] == "insufficient_credits"
    assert f"costs {price:g} credits, and you have 0." in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    await give(ann, 100)
    cheap = await ann.post("/v1/videos", json=BODY | {"max_credits": 0.001})
    assert "max_credits, 0.001" in error_of(cheap, 429)["message"]
    refused = await ann.post("/v1/videos", json=BODY)
    assert error_of(refused, 429)["code"] == "insufficient_quota"
    assert (await credits_of(ann))["balance"] == 100
    # The tier may say so instead.
    await services.users.set_tier("ann", "buyer")
    assert (await ann.post("/v1/videos", json=BODY)).json()["usage"]["credits"] == price


@pytest.mark.parametrize("most", [-1, "NaN", "Infinity", 0.0001, True, 1e10])
async def test_max_credits_is_an_amount(ann: httpx.AsyncClient, most: object) -> None:
    answer = await ann.post("/v1/videos", json=BODY | {"max_credits": most})
    assert error_of(answer, 400)["param"] == "max_credits"


async def test_the_operator_gives_and_takes_once_under_a_ref(ann: httpx.AsyncClient) -> None:
    first = await give(ann, 10.5, ref="gift")
    assert await give(ann, 10.5, ref="gift") == first
    assert first["credits"]["balance"] == 10.5
    assert (await give(ann, -0.5, ref="oops"))["credits"]["balance"] == 10
    assert (await give(ann, -0.5, ref="oops"))["credits"]["balance"] == 10
    body = {"amount": -11, "reason": "too much"}
    answer = await ann.post("/v1/admin/credits/ann", json=body, headers=AS_ADMIN)
    assert error_of(answer, 409)["code"] == "insufficient_credits"
    theirs = (await ann.get("/v1/admin/credits/ann", headers=AS_ADMIN)).json()
    assert theirs == await credits_of(ann)
    page = (await ann.get("/v1/admin/ledger/users/ann", headers=AS_ADMIN)).json()
    assert [entry["type"] for entry in page["data"]] == ["adjustment", "grant"]


@pytest.mark.parametrize(
    "body",
    [
        {"amount": 1},
        {"amount": 1, "reason": ""},
        {"amount": 0, "reason": "x"},
        {"amount": 0.0001, "reason": "x"},
        {"amount": 1, "reason": "x", "kind": "purchase"},
        {"amount": 1, "reason": "x", "ref": "a b"},
        {"amount": -1, "reason": "x", "expires_at": 4_000_000_000},
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    ann: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    error_of(await ann.post("/v1/admin/credits/ann", json=body, headers=AS_ADMIN), 400)
    assert (await credits_of(ann))["balance"] == 0


async def test_only_the_operator_sees_and_changes_others(ann: httpx.AsyncClient) -> None:
    for path in ("credits/bob", "ledger/users/bob", "ledger/export"):
        error_of(await ann.get(f"/v1/admin/{path}"), 403)
    for path in ("credits/ann", "ledger/verify"):
        error_of(await ann.post(f"/v1/admin/{path}", json={}), 403)


async def test_the_ledger_is_verified_and_exported(
    ann: httpx.AsyncClient, services: Services, cell: Cell
) -> None:
    await services.ledger.grant("shop/eve", ref="pay_1", amount=5000, kind=Kind.PURCHASE)
    await give(ann, 2, "shop/eve")
    found = (await ann.post("/v1/admin/ledger/verify", headers=AS_ADMIN)).json()
    assert (found["entries"], found["differences"], found["archived"]) == (2, [], None)
    await cell.redis.hincrby(cell.key("credits", "shop/eve"), "available", 1)
    found = (await ann.post("/v1/admin/ledger/verify", headers=AS_ADMIN)).json()
    assert "shop/eve: available is 7001" in found["differences"][0]

    answer = await ann.get("/v1/admin/ledger/export", headers=AS_ADMIN)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["postings"]["cell:issued"] for line in lines] == [-5000, -2000]
    answer = await ann.get("/v1/admin/ledger/export", params={"format": "csv"}, headers=AS_ADMIN)
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert sum(int(row["amount"]) for row in rows) == 0
    assert {row["user"] for row in rows} == {"shop/eve"}
