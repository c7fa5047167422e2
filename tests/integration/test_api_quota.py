"""What a tier allows, over HTTP: what is counted, refused, replayed and shown beforehand."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import pytest_asyncio
import yaml
from redis.asyncio import Redis

from deployments.housekeeping import apply_tiers_forever
from quota.settings import QuotaSettings
from serving.api import Services
from serving.jobs import Cell, JobQueue, JobSettings, Leases, Phase
from serving.media import open_store
from serving.plan.catalog import Model
from serving.plan.errors import ServiceUnavailable
from tests.api import ADMIN, as_user, error_of, services_over, serving
from tests.jobs import LEASE_MS, leased, until

pytestmark = pytest.mark.asyncio

As = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
"""A client of a new user, whose tier has these fields."""


def at_noon() -> str:
    """A time zone where the day does not end while a test runs."""
    return f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"


class Tiers:
    """A file of tiers that a test writes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.zone = at_noon()
        self.tiers: dict[str, dict[str, Any]] = {"unlimited": {}}
        self.write()

    def write(self) -> None:
        raw = {"default_tier": "unlimited", "time_zone": self.zone, "tiers": self.tiers}
        self.file.write_text(yaml.safe_dump(raw))


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    return Tiers(tmp_path / "tiers.yaml")


@pytest_asyncio.fixture
async def services(redis: Redis, tmp_path: Path, tiers: Tiers, demo_model: Model) -> Services:
    await Cell(redis).check_schema()
    store = open_store(tmp_path.as_uri())
    return services_over(
        redis, store, demo_model, tiers_file=tiers.file, jobs=JobSettings(queue_max=50)
    )


async def in_tier(services: Services, tiers: Tiers, user: str = "ann", **fields: Any) -> None:
    """Give the user a tier with these fields. It counts when the file is looked at again."""
    tiers.tiers[f"of-{user}"] = fields
    tiers.write()
    await until(lambda: _known(services, f"of-{user}", fields))
    await services.users.set_tier(user, f"of-{user}")


async def _known(services: Services, name: str, fields: dict[str, Any]) -> bool:
    known = services.tiers.current.tiers.get(name)
    return known is not None and fields.items() <= known.model_dump(by_alias=True).items()


async def submit(client: httpx.AsyncClient, key: str = "", **fields: Any) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    body = {"prompt": "a red ball", "seconds": 1, "steps": 2, **fields}
    return await client.post("/v1/videos", json=body, headers=headers)


async def accepted(client: httpx.AsyncClient, key: str = "", **fields: Any) -> dict[str, Any]:
    answer = await submit(client, key, **fields)
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


async def jobs_of(client: httpx.AsyncClient) -> list[str]:
    page = (await client.get("/v1/videos", params={"limit": 100})).json()
    return [video["id"] for video in page["data"]]


# What is left.


async def test_every_answer_to_a_submission_says_what_is_left(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, generations_per_day=2, requests_per_minute=10, beyond="refuse")
    async with as_user(services) as ann:
        answers = [await submit(ann) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    for nth, answer in enumerate(answers, 1):
        left = {
            name: answer.headers[f"x-ratelimit-{name}"]
            for name in (
                "limit-requests",
                "remaining-requests",
                "limit-generations",
                "remaining-generations",
            )
        }
        assert left == {
            "limit-requests": "10",
            "remaining-requests": str(10 - nth),
            "limit-generations": "2",
            "remaining-generations": str(max(0, 2 - nth)),
        }
        assert re.fullmatch(r"\d+ms|(\d+m)?\d+s", answer.headers["x-ratelimit-reset-requests"])
        # It is about noon there, so the day ends in about twelve hours.
        assert re.fullmatch(r"1[12]h\d+m\d+s", answer.headers["x-ratelimit-reset-generations"])


async def test_what_has_no_limit_has_no_header(services: Services, tiers: Tiers) -> None:
    async with as_user(services) as ann:
        answer = await submit(ann)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_a_page_may_read_the_headers(services: Services, tiers: Tiers) -> None:
    await in_tier(services, tiers, generations_per_day=1, requests_per_minute=9, beyond="refuse")
    async with as_user(services, origin="https://front.example") as ann:
        await accepted(ann)
        answer = await submit(ann)
    exposed = set(answer.headers["access-control-expose-headers"].replace(" ", "").split(","))
    told = {name for name in answer.headers if name.startswith(("x-ratelimit", "retry-after"))}
    assert len(told) == 8, told
    assert told | {"x-should-retry", "idempotent-replayed"} <= exposed


# Refused.


async def test_a_used_up_allowance_says_when_it_is_back_and_what_can_be_done(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, generations_per_day=1, beyond="refuse")
    async with as_user(services) as ann:
        await accepted(ann)
        answer = await submit(ann)

    error = error_of(answer, 429)
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    wait_s = int(answer.headers["retry-after"])
    assert 0 <= 1000 * wait_s - int(answer.headers["retry-after-ms"]) < 1000
    zone = ZoneInfo(tiers.zone)
    back = datetime.fromtimestamp(time.time() + wait_s, zone)
    assert back.strftime("%H:%M") in ("00:00", "00:01")  # the next midnight
    assert re.fullmatch(
        r"Your allowance is used up: the tier 'of-ann' has 1 generation a day, and you made 1\. "
        rf"A new day begins on {back:%Y-%m-%d} at 00:00:00 {re.escape(tiers.zone)}, "
        r"in 1[12] h \d+ min\. Wait until then, or ask the operator for another tier\.",
        error["message"],
    ), error["message"]


async def test_who_insists_on_a_class_beyond_the_allowance_is_told_of_flex(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, generations_per_day=0)
    async with as_user(services) as ann:
        refused = error_of(await submit(ann, service_tier="default"), 429)
        flex = await accepted(ann, service_tier="flex")

    assert refused["code"] == "insufficient_quota"
    assert (
        "No wait changes that. Submit with service_tier 'flex' to have it made"
        in (refused["message"])
    )
    assert (flex["class"], flex["usage"]["from"]) == ("relaxed", "relaxed")


async def test_a_clip_that_no_days_allowance_suffices_for_is_not_to_be_waited_for(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, gpu_seconds_per_day=0.001, beyond="refuse")
    async with as_user(services) as ann:
        answer = await submit(ann, steps=2000)

    error = error_of(answer, 429)
    assert error["code"] == "insufficient_quota"
    assert "retry-after" not in answer.headers
    assert re.search(r"takes about [\d.,]+ GPU-seconds", error["message"])
    assert "No wait changes that. Ask for a shorter or smaller clip, or" in error["message"]


async def test_priority_that_nothing_pays_for_is_not_to_be_waited_for(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, generations_per_day=5)
    async with as_user(services) as ann:
        answer = await submit(ann, service_tier="priority")
        error = error_of(answer, 429)
        assert (error["code"], "retry-after" in answer.headers) == ("insufficient_credits", False)
        assert "No wait changes that." in error["message"]
        assert "submit with service_tier 'auto', or ask" in error["message"]
        # It was refused, so it was not counted.
        assert answer.headers["x-ratelimit-remaining-generations"] == "5"


async def test_too_many_submissions_are_told_when_the_next_is_possible(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, requests_per_minute=2)
    async with as_user(services) as ann:
        answers = [await submit(ann) for _ in range(3)]

    error = error_of(answers[2], 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "x-should-retry" not in answers[2].headers
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert re.search(
        rf"allows 2 a minute\. The next one is possible at \d\d:\d\d:\d\d {re.escape(tiers.zone)}, "
        r"in \d+ s\. Wait until then, or ask",
        error["message"],
    ), error["message"]


async def test_too_many_waiting_jobs_are_told_what_makes_room(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, queued_jobs=1)
    async with as_user(services) as ann:
        waiting = await accepted(ann)
        answer = await submit(ann)
        error = error_of(answer, 429)
        assert error["code"] == "too_many_queued_jobs"
        assert int(answer.headers["retry-after"]) >= 1
        assert "allows 1. There is room when one of them begins" in error["message"]
        assert "cancel one of them" in error["message"]

        await ann.post(f"/v1/videos/{waiting['id']}/cancel")
        await accepted(ann)


async def test_a_full_queue_has_room_in_another_model(services: Services, tiers: Tiers) -> None:
    async with as_user(services) as ann:
        for number in range(45):  # the last tenth is for burst jobs
            await accepted(ann, prompt=f"number {number}")
        answer = await submit(ann)
    error = error_of(answer, 429)
    assert (error["code"], answer.headers["retry-after"]) == ("queue_full", "30")
    assert "choose another model" in error["message"]


@pytest.mark.parametrize(
    ("allowed", "code", "param"),
    [
        ({"models": ["another"]}, "model_not_allowed", "model"),
        ({"sizes": ["640x480"]}, "size_not_allowed", "size"),
    ],
)
async def test_what_the_tier_does_not_include_is_403_and_counts_nothing(
    services: Services, tiers: Tiers, allowed: dict[str, Any], code: str, param: str
) -> None:
    await in_tier(services, tiers, generations_per_day=5, requests_per_minute=5, **allowed)
    async with as_user(services) as ann:
        error = error_of(await submit(ann), 403)
        usage = (await ann.get("/v1/usage")).json()
    assert (error["code"], error["param"]) == (code, param)
    assert usage["allowance"]["generations"]["used"] == 0
    assert usage["requests"]["left"] == 5


async def test_a_service_tier_nobody_knows_is_400(services: Services) -> None:
    async with as_user(services) as ann:
        error = error_of(await submit(ann, service_tier="fast"), 400)
        assert error["param"] == "service_tier"
        assert "'auto', 'priority', 'default' or 'flex'" in error["message"]
        assert (await accepted(ann, service_tier=None))["service_tier"] == "auto"


# How it counts.


async def test_beyond_the_allowance_a_job_is_relaxed_and_says_so(
    services: Services, tiers: Tiers, leases: Leases
) -> None:
    await in_tier(services, tiers, generations_per_day=1)
    async with as_user(services) as ann:
        first, second = [await accepted(ann, prompt=text) for text in ("one", "two")]
        running = await leased(leases)
        await leases.heartbeat(
            running, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=1, remaining_ms=9, spent_ms=1500
        )
        seen = (await ann.get(f"/v1/videos/{running.id}")).json()

    assert (first["class"], first["usage"]) == (
        "standard",
        {"gpu_seconds": 0, "from": "allowance", "credits": 0},
    )
    assert (second["class"], second["usage"]["from"]) == ("relaxed", "relaxed")
    assert running.id == first["id"]
    assert seen["usage"] == {"gpu_seconds": 1.5, "from": "allowance", "credits": 0}
    assert (seen["service_tier"], seen["class"]) == ("auto", "standard")


async def test_an_end_user_has_an_allowance_of_their_own(services: Services, tiers: Tiers) -> None:
    await in_tier(services, tiers, "shop", generations_per_day=9)
    for end_user in ("shop/ann", "shop/bob"):
        await services.users.set_tier(end_user, "of-shop")
    left = {}
    async with as_user(services, "shop") as shop:
        for name in ("ann", "ann", "bob", None):
            headers = {"x-end-user": name} if name else {}
            answer = await shop.post("/v1/videos", json={"prompt": "x"}, headers=headers)
            left[name] = answer.headers["x-ratelimit-remaining-generations"]
    assert left == {"ann": "7", "bob": "8", None: "8"}


async def test_an_edit_of_the_tiers_counts_without_a_restart(
    services: Services, tiers: Tiers, leases: Leases
) -> None:
    await in_tier(services, tiers, generations_per_day=1, beyond="refuse", running_jobs=1)
    applying = asyncio.create_task(apply_tiers_forever(services.queue, services.tiers))
    try:
        await until(lambda: _limited(services, "1"))
        async with as_user(services) as ann:
            await accepted(ann)
            error_of(await submit(ann), 429)
            # When: the operator is generous
            await in_tier(services, tiers, generations_per_day=2, running_jobs=2)
            await accepted(ann, prompt="another")
            # Then: a job that waits may run beside the other
            await until(lambda: _limited(services, "2"))
            await leased(leases)
            await leased(leases)
    finally:
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)


async def _limited(services: Services, jobs: str) -> bool:
    cell: Cell = services.queue._cell
    return bool(await cell.redis.hget(cell.key("tiers"), "of-ann:running_jobs") == jobs)


# The same request again.


async def test_a_key_replays_the_first_answer_to_the_byte(
    services: Services, leases: Leases
) -> None:
    async with as_user(services) as ann:
        first = await submit(ann, "order-7")
        await leased(leases)  # so that the job has changed since
        again = await submit(ann, "order-7")

        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert "idempotent-replayed" not in first.headers
        assert await jobs_of(ann) == [first.json()["id"]]


async def test_a_replay_costs_nothing_and_outlives_the_job(
    services: Services, tiers: Tiers
) -> None:
    await in_tier(services, tiers, generations_per_day=1, requests_per_minute=1, beyond="refuse")
    async with as_user(services) as ann:
        first = await submit(ann, "k")
        again = await submit(ann, "k")
        await ann.delete(f"/v1/videos/{first.json()['id']}")
        once_more = await submit(ann, "k")
    assert again.content == once_more.content == first.content
    assert again.headers["x-ratelimit-remaining-generations"] == "0"


async def test_a_form_is_the_same_request_as_json(services: Services) -> None:
    fields = {"prompt": "x", "seconds": "1", "guidance_scale": "2.0", "service_tier": "auto"}
    headers = {"idempotency-key": "k"}
    async with as_user(services) as ann:
        form = await ann.post(
            "/v1/videos", files={k: (None, v) for k, v in fields.items()}, headers=headers
        )
        same = {"guidance_scale": 2, "seconds": 1, "prompt": "x", "seed": None}
        as_json = await ann.post("/v1/videos", json=same, headers=headers)
    assert form.status_code == 200, form.text
    assert as_json.content == form.content


@pytest.mark.parametrize("change", [{"prompt": "y"}, {"seed": 7}, {"service_tier": "flex"}])
async def test_another_body_under_the_same_key_is_422(
    services: Services, change: dict[str, Any]
) -> None:
    async with as_user(services) as ann:
        first = await accepted(ann, "k")
        answer = await submit(ann, "k", **change)
        error = error_of(answer, 422)
        assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
        assert await jobs_of(ann) == [first["id"]]


async def test_a_key_is_its_users_own(services: Services) -> None:
    async with as_user(services, "ann") as ann, as_user(services, "bob") as bob:
        assert (await accepted(ann, "k"))["id"] != (await accepted(bob, "k"))["id"]


@pytest.mark.parametrize("key", [b"", b" ", b"two words", b"k" * 256, "naïve".encode()])
async def test_a_key_that_is_none_is_400_and_makes_nothing(services: Services, key: bytes) -> None:
    async with as_user(services) as ann:
        headers = httpx.Headers([(b"idempotency-key", key)])
        answer = await ann.post("/v1/videos", json={"prompt": "x"}, headers=headers)
        error = error_of(answer, 400)
        assert (error["code"], error["param"]) == ("invalid_idempotency_key", "Idempotency-Key")
        assert await jobs_of(ann) == []


async def test_two_keys_on_one_request_are_400(services: Services) -> None:
    async with as_user(services) as ann:
        headers = [("idempotency-key", "a"), ("idempotency-key", "b")]
        answer = await ann.post("/v1/videos", json={"prompt": "x"}, headers=headers)
    assert error_of(answer, 400)["code"] == "invalid_idempotency_key"


async def test_the_longest_and_oddest_key_is_good(services: Services) -> None:
    async with as_user(services) as ann:
        key = ":*{}~!" + "k" * 249
        assert (await accepted(ann, key))["id"] == (await accepted(ann, key))["id"]


async def test_concurrent_duplicates_are_one_job(services: Services) -> None:
    async with as_user(services) as ann:
        answers = await asyncio.gather(*(submit(ann, "k") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert await jobs_of(ann) == list({answer.json()["id"] for answer in answers})
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


class Forgetful(JobQueue):
    """As if the ingress died, or Redis, once the job was accepted."""

    async def remember(self, user: str, idempotency_key: str, response: str) -> None:
        raise ServiceUnavailable("gone")


async def test_an_answer_that_was_not_kept_is_replaced_by_the_job_as_it_is(
    services: Services, redis: Redis, leases: Leases
) -> None:
    forgetful = dataclasses.replace(services, queue=Forgetful(Cell(redis)))
    async with as_user(forgetful) as ann:
        first = await submit(ann, "k")
        await leased(leases)
        again = await submit(ann, "k")
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.json()["id"], again.json()["status"]) == (first.json()["id"], "in_progress")


async def test_a_job_that_was_deleted_before_anybody_knew_of_it_is_404(
    services: Services, redis: Redis
) -> None:
    forgetful = dataclasses.replace(services, queue=Forgetful(Cell(redis)))
    async with as_user(forgetful) as ann:
        first = await accepted(ann, "k")
        await ann.delete(f"/v1/videos/{first['id']}")
        assert error_of(await submit(ann, "k"), 404)["code"] == "video_not_found"


async def test_a_refusal_is_not_remembered(services: Services, tiers: Tiers) -> None:
    await in_tier(services, tiers, queued_jobs=1)
    async with as_user(services) as ann:
        waiting = await accepted(ann)
        error_of(await submit(ann, "k"), 429)
        await ann.post(f"/v1/videos/{waiting['id']}/cancel")
        await accepted(ann, "k")


async def retry(client: httpx.AsyncClient, count: str, **fields: Any) -> httpx.Response:
    """As the official SDKs mark a request that they sent before."""
    body = {"prompt": "a red ball", **fields}
    return await client.post("/v1/videos", json=body, headers={"x-stainless-retry-count": count})


async def test_what_an_sdk_repeats_by_itself_is_one_job(services: Services) -> None:
    async with as_user(services) as ann:
        first = await retry(ann, "0")
        again = await retry(ann, "1")
        last = await retry(ann, "2")
        assert first.json()["id"] == again.json()["id"] == last.json()["id"]
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"


async def test_concurrent_retries_of_a_lost_request_are_one_job(services: Services) -> None:
    async with as_user(services) as ann:
        await asyncio.gather(*(retry(ann, "1") for _ in range(10)))
        assert len(await jobs_of(ann)) == 1


@pytest.mark.parametrize("count", ["0", "", "-1", "x", "١"])
async def test_a_request_that_is_no_retry_is_a_job_of_its_own(
    services: Services, count: str
) -> None:
    async with as_user(services) as ann:
        first = await retry(ann, "0")
        headers = httpx.Headers([(b"x-stainless-retry-count", count.encode())])
        other = await ann.post("/v1/videos", json={"prompt": "a red ball"}, headers=headers)
        assert other.json()["id"] != first.json()["id"]


async def test_a_retry_whose_first_did_not_arrive_or_is_another_is_a_job(
    services: Services,
) -> None:
    async with as_user(services) as ann:
        lost = await retry(ann, "1")
        other = await retry(ann, "1", seed=3)
        assert len({lost.json()["id"], other.json()["id"]}) == 2
        # And the retry of that one finds it.
        assert (await retry(ann, "2")).json()["id"] == lost.json()["id"]


async def test_under_another_key_a_retry_is_another_request(services: Services) -> None:
    async with as_user(services) as ann:
        first = await accepted(ann, "k1")
        headers = {"idempotency-key": "k2", "x-stainless-retry-count": "1"}
        body = {"prompt": "a red ball", "seconds": 1, "steps": 2}
        other = await ann.post("/v1/videos", json=body, headers=headers)
        assert other.json()["id"] != first["id"]


async def test_the_header_is_in_the_description_of_the_api(services: Services) -> None:
    async with serving(services) as anyone:
        described = (await anyone.get("/openapi.json")).json()["paths"]["/v1/videos"]["post"]
    names = {each["name"].lower() for each in described["parameters"]}
    assert {"idempotency-key", "x-end-user"} <= names
    assert "service_tier" in str(described["requestBody"])


@pytest.mark.parametrize("window_s", [0.0, 0.05])
async def test_after_the_window_a_retry_is_a_job_of_its_own(
    services: Services, window_s: float
) -> None:
    brief = dataclasses.replace(services, quota=QuotaSettings(retry_window_s=window_s))
    async with as_user(brief) as ann:
        first = await retry(ann, "0")
        await asyncio.sleep(0.1)
        assert (await retry(ann, "1")).json()["id"] != first.json()["id"]


# Before submitting.


async def test_usage_says_what_is_left_before_anybody_submits(
    services: Services, tiers: Tiers, leases: Leases
) -> None:
    surge = {"generations_per_day": 1, "class": "relaxed"}
    await in_tier(
        services,
        tiers,
        generations_per_day=3,
        gpu_seconds_per_day=600.5,
        running_jobs=2,
        queued_jobs=7,
        requests_per_minute=10,
        surge=surge,
    )
    async with as_user(services) as ann:
        before = (await ann.get("/v1/usage")).json()
        await accepted(ann, prompt="one")
        await accepted(ann, prompt="two")
        await leased(leases)
        after = (await ann.get("/v1/usage")).json()

    resets_at = before["allowance"].pop("resets_at")
    midnight = datetime.fromtimestamp(resets_at, ZoneInfo(tiers.zone))
    assert (midnight.hour, midnight.minute, midnight.second) == (0, 0, 0)
    assert 0 < resets_at - time.time() <= 24 * 3600
    assert before == {
        "object": "usage",
        "tier": "of-ann",
        "class": "standard",
        "beyond": "relaxed",
        "allowance": {
            "generations": {"limit": 3, "used": 0, "left": 3},
            "gpu_seconds": {"limit": 600.5, "used": 0, "left": 600.5},
            "window": "day",
            "time_zone": tiers.zone,
        },
        "requests": {"limit_per_minute": 10, "left": 10},
        "running": {"count": 0, "limit": 2},
        "queued": {"count": 0, "limit": 7},
        "surge": {"demo-wan": False},
        "surge_rules": surge,
    }
    assert after["allowance"]["generations"] == {"limit": 3, "used": 2, "left": 1}
    assert after["allowance"]["gpu_seconds"]["used"] > 0
    assert (after["running"]["count"], after["queued"]["count"]) == (1, 1)
    assert after["requests"]["left"] == 8


async def test_usage_without_limits(services: Services) -> None:
    async with as_user(services) as ann:
        usage = (await ann.get("/v1/usage")).json()
    assert usage["tier"] == "unlimited"
    assert usage["allowance"]["generations"] == {"limit": None, "used": 0, "left": None}
    assert usage["allowance"]["resets_at"] is None
    assert usage["requests"] == {"limit_per_minute": None, "left": None}
    assert usage["surge_rules"] is None


async def test_a_surge_shows_and_holds(services: Services, tiers: Tiers, demo_model: Model) -> None:
    await in_tier(
        services,
        tiers,
        generations_per_day=9,
        surge={"generations_per_day": 1, "class": "relaxed"},
        beyond="refuse",
    )
    spec: dict[str, Any] = {"seconds": 12, "steps": 2000}  # hours of work by the catalog's table
    async with as_user(services, "bob") as bob, as_user(services) as ann:
        assert (await ann.get("/v1/usage")).json()["surge"] == {"demo-wan": False}
        for number in range(38):
            await accepted(bob, prompt=f"number {number}", **spec)
        usage = (await ann.get("/v1/usage")).json()
        first = await accepted(ann, prompt="one")
        refused = error_of(await submit(ann, prompt="two"), 429)

    assert usage["surge"] == {"demo-wan": True}
    assert first["class"] == "relaxed"
    assert "has 1 generation a day while too much waits for 'demo-wan'" in refused["message"]
    assert "Wait until then, try again when less waits for it, or ask" in refused["message"]


async def test_usage_needs_a_users_key(services: Services) -> None:
    async with serving(services) as anyone:
        error_of(await anyone.get("/v1/usage"), 401)
        admin = {"authorization": f"Bearer {ADMIN}"}
        error_of(await anyone.get("/v1/usage", headers=admin), 403)


# Why a job waits.


async def test_queue_top_shows_classes_and_tenants(services: Services, leases: Leases) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    async with as_user(services, "ann") as ann, as_user(services, "bob") as bob:
        for number in range(3):
            await accepted(ann, prompt=f"number {number}")
        await accepted(bob, service_tier="flex")
        await leased(leases)
        error_of(await ann.get("/v1/admin/queue/demo-wan"), 403)
        top = (await ann.get("/v1/admin/queue/sora-2", headers=admin)).json()
        unknown = await ann.get("/v1/admin/queue/sora-9", headers=admin)

    assert error_of(unknown, 404)["code"] == "model_not_found"
    assert (top["object"], top["model"]) == ("queue", "demo-wan")
    # Standard was given something, so relaxed is owed its share of that.
    assert top["order"] == ["relaxed", "standard"]
    classes = {each["class"]: each for each in top["classes"]}
    assert list(classes) == ["burst", "standard", "relaxed"]
    standard, relaxed = classes["standard"], classes["relaxed"]
    assert (classes["burst"]["jobs"], standard["jobs"], relaxed["jobs"]) == (0, 2, 1)
    assert standard["gpu_seconds"] > 0
    assert standard["share"] == 0.3
    [tenant] = standard["tenants"]
    assert (tenant["user"], tenant["waiting"], tenant["running"]) == ("ann", 2, 1)
    assert tenant["counter_s"] > 0
    assert [tenant["user"] for tenant in relaxed["tenants"]] == ["bob"]


async def test_explain_says_why_a_job_waits(
    services: Services, tiers: Tiers, leases: Leases
) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    await in_tier(services, tiers, "bob", running_jobs=1)
    await services.queue.apply_tiers(services.tiers.current)

    async def explain(video: dict[str, Any]) -> dict[str, Any]:
        answer = await ann.get(f"/v1/admin/jobs/{video['id']}/explain", headers=admin)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async with as_user(services, "ann") as ann, as_user(services, "bob") as bob:
        running = await accepted(bob, prompt="running")
        assert (await leased(leases)).id == running["id"]
        parked = await accepted(bob, prompt="parked")
        relaxed = await accepted(ann, prompt="relaxed", service_tier="flex")
        first = await accepted(ann, prompt="first")
        assert "There is no replica of 'demo-wan' now." in (await explain(first))["reasons"]
        await leases.announce(host="h", pid=1, slots=1, free=0, age_ms=1)
        second = await accepted(ann, prompt="second", steps=50)

        found = await explain(first)
        assert (found["object"], found["status"], found["user"]) == (
            "queue.explanation",
            "queued",
            "ann",
        )
        assert (found["class"], found["rank"]["seat"], found["before"]) == ("standard", 1, [])
        assert "It is next: a replica takes it as soon as it has room." in found["reasons"]
        found = await explain(second)
        assert [job["id"] for job in found["before"]] == [first["id"]]
        assert f"{first['id']} goes first." in found["reasons"]
        assert "'ann' has 1 job before it with less work, or older." in found["reasons"]
        found = await explain(relaxed)
        assert found["order"] == ["standard", "relaxed"]
        assert "Class standard goes before class relaxed as things stand." in found["reasons"]
        found = await explain(parked)
        assert found["at_running_limit"] is True
        assert "'bob' runs 1 job, as many as their tier allows at once" in found["reasons"][0]
        found = await explain(running)
        assert found["reasons"] == ["It does not wait: it is in_progress."]

        path = f"/v1/admin/jobs/{first['id']}/explain"
        error_of(await ann.get(path), 403)
        error_of(await ann.get("/v1/admin/jobs/video_x/explain", headers=admin), 404)
