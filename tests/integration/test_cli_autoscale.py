"""The command line shows decisions as they come from Redis, through an ingress on a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.jobs import Cell, Decisions
from serving.plan.catalog import Model
from tests.api import ADMIN, running_ingress
from tests.decisions import decision
from tests.scripted import reelserve

SCALED, FIXED = "scaled-wan", "fixed-wan"


@pytest.fixture
def ingress(
    redis_server: RedisServer, tmp_path: Path, demo_model: Model, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Of two models: one that is scaled, and one that always has a replica. Redis is empty."""
    BlockingRedis.from_url(redis_server.url).flushall()
    entry = demo_model.model_dump(mode="json", exclude={"aliases"}, exclude_unset=True)
    (tmp_path / "catalog").mkdir()
    for name, scaling in ((SCALED, {"max_replicas": 4, "buffer": 1}), (FIXED, None)):
        file = tmp_path / "catalog" / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**entry, "id": name, "scaling": scaling}))
    settings = StackSettings(
        redis_url=SecretStr(redis_server.url),
        data_dir=tmp_path,
        admin_key=SecretStr(ADMIN),
        catalog_dirs=[tmp_path / "catalog"],
        models=[SCALED, FIXED],
    )
    with running_ingress(settings) as url:
        monkeypatch.setenv("REELSERVE_URL", url)
        monkeypatch.setenv("REELSERVE_ADMIN_KEY", ADMIN)
        yield url


@pytest.fixture
def decide(redis_server: RedisServer, ingress: str) -> Any:
    """Does what the autoscaler does after it decided."""

    def write(**changes: Any) -> None:
        async def connect() -> None:
            redis: Redis = Redis.from_url(redis_server.url, decode_responses=True)
            await Decisions(Cell(redis)).write({SCALED: decision(SCALED, **changes)})
            await redis.aclose()

        asyncio.run(connect())

    return write


def test_a_decision_is_explained_from_its_sample_to_its_bound(decide: Any) -> None:
    before = reelserve("autoscale", "explain")
    assert f"{SCALED}: no decision yet" in before.stdout
    assert f"{FIXED}: autoscaling is off" in before.stdout
    decide(target=2, bound="budget", why="the budget of all pools gives 2")
    said = reelserve("autoscale", "explain", SCALED)
    assert said.exit_code == 0, said.output
    assert f"{SCALED}: 2 replicas, instead of 1; 1 ready" in said.stdout
    assert "132.5 GPU-s of burst and standard / 1.00 / 180.0 s left of 180 s → 3" in said.stdout
    assert "→ 2, where 4 would be wanted" in said.stdout


def test_watch_sees_what_is_decided(decide: Any) -> None:
    for ready in (1, 2, 4):
        decide(ready=ready)
    watched = reelserve("autoscale", "watch", SCALED, "--seconds", "0", "--json")
    lines = [each["pools"][SCALED] for each in json.loads(watched.stdout)["data"]]
    assert [(each["ready"], each["target"], each["work_s"]) for each in lines] == [
        (4, 4, 132.5),
        (2, 4, 132.5),
        (1, 4, 132.5),
    ]
    drawn = reelserve("autoscale", "watch", "--seconds", "0")
    assert f"{SCALED}: 4 ready, 4 asked for, 4 wanted; need: 132.5 GPU-seconds" in drawn.stdout
