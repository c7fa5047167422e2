"""Clients against an ingress on a socket: the official SDK, unmodified, and the command line."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from pydantic import SecretStr
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from typer.testing import CliRunner, Result

from deployments.cli.main import app
from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from deployments.stack import LocalStack
from serving.jobs import Cell
from serving.plan.errors import ConfigError
from tests.api import ADMIN, running_ingress
from tests.jobs import until

TIERS = {
    "default_tier": "free",
    "tiers": {
        "free": {"generations_per_day": 1, "beyond": "refuse"},
        "slow": {"requests_per_minute": 20},
        "unlimited": {},
    },
}


@pytest.fixture
def ingress(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Its URL. Redis is empty, and the tiers are those above."""
    Redis.from_url(redis_server.url).flushall()
    file = tmp_path / "tiers.yaml"
    file.write_text(yaml.safe_dump(TIERS))
    monkeypatch.setenv("REELSERVE_QUOTA_TIERS_FILE", str(file))
    settings = StackSettings(
        redis_url=SecretStr(redis_server.url), data_dir=tmp_path, admin_key=SecretStr(ADMIN)
    )
    with running_ingress(settings) as url:
        monkeypatch.setenv("REELSERVE_URL", url)
        monkeypatch.setenv("REELSERVE_ADMIN_KEY", ADMIN)
        yield url


def key_of(url: str, user: str, tier: str | None = None) -> str:
    made = httpx.post(
        f"{url}/v1/admin/keys",
        json={"user": user, "tier": tier},
        headers={"authorization": f"Bearer {ADMIN}"},
    )
    assert made.status_code == 200, made.text
    return str(made.json()["key"])


# The official SDK.


class Line(httpx.HTTPTransport):
    """The way to the server. It counts, and loses the answers it is told to lose."""

    def __init__(self, lose: int = 0) -> None:
        super().__init__()
        self._lose = lose
        self.posted: list[tuple[str, int]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if request.method == "POST":
            retries = request.headers["x-stainless-retry-count"]
            self.posted.append((retries, response.status_code))
            if len(self.posted) <= self._lose:
                response.read()
                raise httpx.ReadError("the line is dead", request=request)
        return response


@pytest.fixture
def sdk(ingress: str) -> Iterator[Callable[[str, Line], openai.OpenAI]]:
    """A client of a new user in this tier, by that line."""
    opened: list[Any] = []  # of either of the two libraries that the SDK works with

    def client(tier: str, line: Line) -> openai.OpenAI:
        opened.append(httpx.Client(transport=line, timeout=30))
        key = key_of(ingress, f"user-of-{tier}", tier)
        return openai.OpenAI(base_url=f"{ingress}/v1", api_key=key, http_client=opened[-1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield client
    for each in opened:
        each.close()


Sdk = Callable[[str, Line], openai.OpenAI]


def test_a_lost_answer_makes_no_second_clip(sdk: Sdk) -> None:
    line = Line(lose=2)
    client = sdk("unlimited", line)

    video = client.videos.create(prompt="a red ball")

    assert line.posted == [("0", 200), ("1", 200), ("2", 200)]
    assert [each.id for each in client.videos.list()] == [video.id]


def test_a_used_up_allowance_is_not_asked_for_again(sdk: Sdk) -> None:
    line = Line()
    client = sdk("free", line)
    client.videos.create(prompt="one")

    with pytest.raises(openai.RateLimitError, match="has 1 generation a day") as refused:
        client.videos.create(prompt="two")

    assert line.posted == [("0", 200), ("0", 429)]
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")


def test_too_many_at_once_are_asked_for_again_when_there_is_room(sdk: Sdk) -> None:
    line = Line()
    client = sdk("slow", line)
    impatient = client.with_options(max_retries=0)
    with suppress(openai.RateLimitError):
        for number in range(100):
            impatient.videos.create(prompt=f"number {number}")
    assert line.posted[-1] == ("0", 429)
    line.posted.clear()

    patient = client.with_options(max_retries=1)
    patient.videos.create(prompt="the last")

    # Once more is enough: the first refusal said when.
    assert line.posted[-1] == (str(len(line.posted) - 1), 200)


def test_an_sdks_own_key_is_honoured(sdk: Sdk) -> None:
    client = sdk("unlimited", Line())
    headers = {"Idempotency-Key": "order-7"}
    first = client.videos.create(prompt="x", extra_headers=headers)
    again = client.videos.with_raw_response.create(prompt="x", extra_headers=headers)
    assert again.parse().id == first.id
    assert again.headers["idempotent-replayed"] == "true"
    with pytest.raises(openai.UnprocessableEntityError) as reused:
        client.videos.create(prompt="y", extra_headers=headers)
    assert reused.value.code == "idempotency_key_reused"


# The command line.


def reelserve(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def answer(*arguments: str) -> Any:
    result = reelserve(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def ann(ingress: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user of the default tier, who the command line speaks for."""
    monkeypatch.setenv("REELSERVE_API_KEY", key_of(ingress, "ann"))
    return "ann"


def test_submitting_again_under_a_key_is_the_same_job(ann: str) -> None:
    submit = ("submit", "a red ball", "--no-wait", "--idempotency-key", "order-7")
    first, again = reelserve(*submit), reelserve(*submit)
    assert first.stdout == again.stdout
    assert len(answer("jobs", "list")["data"]) == 1


def test_an_estimate_says_what_a_submission_would_come_to(ann: str) -> None:
    outlook = answer("submit", "a red ball", "--seconds", "2", "--estimate")
    assert (outlook["accepted"], outlook["class"], outlook["from"]) == (
        True,
        "standard",
        "allowance",
    )
    told = reelserve("submit", "a red ball", "--seconds", "2", "--estimate").stdout
    assert told.startswith(f"{outlook['price']['credits']:g} credits, ")
    assert "class standard, paid from the allowance; 0 jobs before it" in told
    assert answer("jobs", "list")["data"] == []
    answer("submit", "a red ball", "--no-wait")
    told = reelserve("submit", "a red ball", "--estimate").stdout
    assert "it would be refused: Your allowance is used up" in told


def test_usage_and_what_follows_from_it(ann: str) -> None:
    before = reelserve("usage").stdout
    assert "free: class standard; beyond: refuse" in before
    assert "0 of 1 used, 1 left" in before
    assert "(midnight UTC)" in before

    video = answer("submit", "a red ball", "--no-wait", "--service-tier", "default")
    assert (video["service_tier"], video["class"]) == ("default", "standard")
    assert answer("usage")["allowance"]["generations"]["left"] == 0

    refused = reelserve("submit", "another", "--no-wait")
    assert refused.exit_code == 1
    assert "has 1 generation a day" in refused.stderr
    shown = reelserve("jobs", "show", video["id"]).stdout
    assert "standard (service tier default)" in shown


def test_credits_are_given_spent_and_accounted_for(ann: str) -> None:
    given = reelserve("credits", "grant", ann, "20", "--reason", "first clips", "--days", "30")
    assert given.exit_code == 0, given.stderr
    assert "--ref cli_" in given.stderr
    again = ("credits", "adjust", ann, "--by", "-5.5", "--reason", "granted twice", "--ref", "oops")
    assert answer(*again)["credits"]["balance"] == answer(*again)["credits"]["balance"] == 14.5
    shown = reelserve("credits", "show", ann).stdout
    assert "14.5" in shown
    assert "promotion" in shown

    answer("submit", "a red ball", "--no-wait")
    video = answer("submit", "another", "--no-wait", "--max-credits", "14")
    assert (video["class"], video["usage"]["from"]) == ("burst", "credits")
    assert answer("credits", "show", ann)["held"] == video["usage"]["credits"] > 0
    answer("jobs", "cancel", video["id"])
    assert answer("credits", "show", ann)["balance"] == 14.5

    verified = reelserve("ledger", "verify")
    assert verified.exit_code == 0
    assert verified.stdout == "4 entries. Every balance is what they say.\n"
    lines = reelserve("ledger", "export").stdout.splitlines()
    types = [json.loads(line)["type"] for line in lines]
    assert types == ["grant", "adjustment", "hold", "release"]
    assert reelserve("ledger", "export", "--format", "csv").stdout.startswith("id,type,user,")

    too_much = reelserve("credits", "adjust", ann, "--by", "-15", "--reason", "x")
    assert too_much.exit_code == 1
    assert "Only 14.5 credits may be spent." in too_much.stderr


def test_who_waits_and_why(ann: str) -> None:
    video_id = answer("submit", "a red ball", "--no-wait")["id"]

    top = reelserve("queue", "top").stdout
    assert "demo-wan: standard" in top
    assert [line.split()[0] for line in top.splitlines() if line.startswith("ann")] == ["ann"]
    assert answer("queue", "top", "sora-2")["classes"][1]["jobs"] == 1

    told = reelserve("queue", "explain", video_id)
    assert told.exit_code == 0, told.stderr
    assert "There is no replica of 'demo-wan' now." in told.stdout
    assert "seat 1, urgency" in told.stdout
    assert answer("queue", "explain", video_id)["order"] == ["standard"]
    assert reelserve("queue", "explain", "video_x").exit_code == 1
    reelserve("jobs", "cancel", video_id)
    assert reelserve("queue", "explain", video_id).stdout.startswith(
        "It does not wait: it is cancelled."
    )
    assert "nobody waits" in reelserve("queue", "top").stdout


def test_a_stack_says_what_is_wrong_with_the_tiers_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiers.yaml"
    file.write_text("default_tier: free\ntiers:\n  free: {weight: four}\n")
    monkeypatch.setenv("REELSERVE_QUOTA_TIERS_FILE", str(file))
    settings = StackSettings(data_dir=tmp_path / "data")

    with pytest.raises(ConfigError, match=r"line 3, tiers\.free\.weight"), LocalStack(settings):
        pass

    assert not settings.data_dir.exists()


def test_an_ingress_tells_the_queue_of_its_tiers(ingress: str, redis_server: RedisServer) -> None:
    async def told() -> None:
        redis: AsyncRedis = AsyncRedis.from_url(redis_server.url, decode_responses=True)
        cell = Cell(redis)

        async def it_knows() -> bool:
            return bool(await cell.redis.hget(cell.key("tiers"), "default") == "free")

        await until(it_knows)  # housekeeping does it beside the first requests
        await redis.aclose()

    asyncio.run(told())
