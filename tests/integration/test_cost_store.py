"""Replicas learn into one cost model in Redis, and nobody's figures are lost or misread."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.redis_server import RedisServer
from deployments.settings import StackSettings
from serving.jobs import Cell, CostReader, CostStore, Leases
from serving.jobs import costs as room
from serving.jobs.costs import MODELS_MAX
from serving.plan.catalog import Model
from serving.plan.costs import CELLS_MAX, CostModel, Stage
from serving.plan.curve import WINDOW
from serving.plan.errors import ServiceUnavailable
from tests.jobs import spec

pytestmark = pytest.mark.asyncio

DEVICE = "NVIDIA H200"


@pytest.fixture
def store(cell: Cell) -> CostStore:
    return CostStore(cell)


async def learn_encode(store: CostStore, costs: CostModel, seconds: float) -> None:
    costs.observe_encode(seconds)
    await store.sync(costs)


async def learned(store: CostStore, model: Model, device: str = DEVICE) -> CostModel:
    return (await store.load(model)).learned[device]


async def test_at_first_the_catalogs_table_counts(store: CostStore, demo_model: Model) -> None:
    pool = await store.load(demo_model)
    assert (pool.learned, pool.live) == ({}, frozenset())
    assert pool.estimate(spec()) == CostModel(demo_model).estimate(spec())


async def test_what_one_replica_learned_the_others_and_every_reader_know(
    store: CostStore, demo_model: Model
) -> None:
    first, second = CostModel(demo_model, DEVICE), CostModel(demo_model, DEVICE)
    await learn_encode(store, first, 4.0)
    await store.sync(second)  # it has nothing to say
    assert second.encode_s == first.encode_s == pytest.approx(4, rel=0.01)
    second.observe_decode(10**6, 9.0)
    await store.sync(second)
    await store.sync(first)
    known = await learned(store, demo_model)
    assert known.to_json() == first.to_json() == second.to_json()
    assert known.decode_s(10**6) == pytest.approx(9.0)
    assert known.encode_s == pytest.approx(4.0)


async def test_replicas_that_write_at_the_same_time_lose_nothing(
    store: CostStore, demo_model: Model
) -> None:
    replicas = [CostModel(demo_model, DEVICE) for _ in range(8)]

    async def work(number: int, costs: CostModel) -> None:
        for _ in range(10):
            costs.observe_decode(1000 * (number + 1), 0.1 * (number + 1))
            await learn_encode(store, costs, 1.0 + number)

    await asyncio.gather(*(work(number, costs) for number, costs in enumerate(replicas)))
    known = await learned(store, demo_model)
    assert known.accuracy()[Stage.ENCODE].predictions == 80
    assert known.accuracy()[Stage.DECODE].predictions == 80
    for number in range(8):
        assert known.decode_s(1000 * (number + 1)) == pytest.approx(0.1 * (number + 1), rel=0.01)
    assert 1 <= known.encode_s <= 8


async def test_redis_merges_as_a_lone_model_folds(
    store: CostStore, cell: Cell, demo_model: Model
) -> None:
    alone, shared = CostModel(demo_model, DEVICE), CostModel(demo_model, DEVICE)
    for turn in range(1, CELLS_MAX + 2 * WINDOW):
        for costs in (alone, shared):
            costs.observe_encode(0.1 * turn)
            costs.observe_decode(10**6, 1 / turn)
            # From some turn on, more shapes than there is room for.
            for _ in range(3):
                costs.observe_step(64 * (turn - turn % 3 + 3), 2, 0.5 + 0.01 * turn)
            costs.observe_deliver(1000 * turn, 0.3)
        alone.fold()
        await store.sync(shared)
        assert shared.to_json() == alone.to_json()
    kept = json.loads(await cell.redis.hget(cell.key("costs", "demo-wan"), field(alone)))
    assert len(kept["cells"]["deliver"]) == CELLS_MAX
    assert len(kept["cells"]["encode"][""]["s"]) == WINDOW


def field(costs: CostModel) -> str:
    return f"{costs.format} {costs.device}"


async def test_what_was_learned_survives_a_killed_redis_and_new_processes(
    tmp_path: Path, demo_model: Model
) -> None:
    server = RedisServer(tmp_path / "redis")
    client: Redis = Redis.from_url(server.start(), decode_responses=True)
    costs = CostModel(demo_model, DEVICE)
    await learn_encode(CostStore(Cell(client)), costs, 7.0)
    os.kill(server.pid, signal.SIGKILL)
    await client.aclose()
    server.stop()
    client = Redis.from_url(server.start(), decode_responses=True)
    store, heir = CostStore(Cell(client)), CostModel(demo_model, DEVICE)
    await store.sync(heir)
    assert heir.to_json() == costs.to_json()
    assert (await learned(store, demo_model)).to_json() == costs.to_json()
    await client.aclose()
    server.stop()


async def test_figures_of_another_catalog_entry_stay_its_own(
    store: CostStore, demo_model: Model
) -> None:
    """As during a rollout, when replicas of both write by turns."""
    other_model = demo_model.model_copy(
        update={"load": demo_model.load.model_copy(update={"dtype": "bfloat16"})}
    )
    old, new = CostModel(demo_model, DEVICE), CostModel(other_model, DEVICE)
    for _ in range(3):
        await learn_encode(store, old, 4.0)
        await learn_encode(store, new, 2.0)
    assert (await learned(store, demo_model)).encode_s == pytest.approx(4.0)
    assert (await learned(store, other_model)).encode_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "7",
        "null",
        '{"format": "another version"}',
        '{"format": "FORMAT", "folds": 0, "cells": 1, "errors": {}}',
        '{"format": "FORMAT", "folds": "x", "cells": {}, "errors": {}}',
        '{"format": "FORMAT", "folds": 1, "cells": {"encode": {"": []}}, "errors": {}}',
    ],
)
async def test_damaged_figures_are_passed_over_and_replaced(
    store: CostStore, cell: Cell, demo_model: Model, damage: str
) -> None:
    costs = CostModel(demo_model, DEVICE)
    where = cell.key("costs", "demo-wan")
    damage = damage.replace("FORMAT", costs.format)
    await cell.redis.hset(where, field(costs), damage)
    await cell.redis.hset(where, "nonsense", damage)
    assert (await store.load(demo_model)).learned == {}
    await store.sync(costs)
    assert not costs.learned
    await learn_encode(store, costs, 4.0)
    assert (await learned(store, demo_model)).to_json() == costs.to_json()


async def test_only_so_many_cost_models_are_kept_of_a_pool(
    store: CostStore, cell: Cell, demo_model: Model
) -> None:
    await cell.redis.hset(cell.key("costs", "demo-wan"), "nonsense", "{")
    for number in range(MODELS_MAX + 3):
        await learn_encode(store, CostModel(demo_model, f"device {number:02}"), 1.0)
        await asyncio.sleep(0.002)  # they are told apart by the millisecond
    kept = (await store.load(demo_model)).learned
    assert sorted(kept) == [f"device {number:02}" for number in range(3, MODELS_MAX + 3)]


async def test_a_pool_knows_what_its_live_replicas_run_on(
    store: CostStore, leases: Leases, demo_model: Model
) -> None:
    for device, seconds in (("fast", 1.0), ("slow", 9.0)):
        await learn_encode(store, CostModel(demo_model, device), seconds)
    assert (await store.load(demo_model)).estimate(spec()).encode_s == pytest.approx(9.0)
    await leases.announce(host="a", pid=1, slots=1, free=1, age_ms=0, device="fast")
    pool = await store.load(demo_model)
    assert pool.live == {"fast"}
    assert pool.estimate(spec()).encode_s == pytest.approx(1.0)
    await leases.retire()
    assert (await store.load(demo_model)).live == frozenset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own models
async def test_a_deployment_drains_as_long_as_earlier_ones_taught(
    store: CostStore, redis_server: RedisServer, demo_model: Model
) -> None:
    from deployments.application import learned_costs, serve_config

    def timeout_s(config: dict[str, Any]) -> float:
        _ingress, pool, _speaks = config["applications"][0]["deployments"]
        assert pool["name"] == "demo-wan"
        return float(pool["graceful_shutdown_timeout_s"])

    settings = StackSettings(redis_url=SecretStr(redis_server.url))
    by_table = timeout_s(serve_config(settings))
    await learn_encode(store, CostModel(demo_model, "slow"), 100.0)
    await learn_encode(store, CostModel(demo_model, "fast"), 0.001)
    longer = timeout_s(serve_config(settings, await learned_costs(settings)))
    assert longer > by_table + 250
    away = StackSettings(redis_url=SecretStr("redis://127.0.0.1:9/0"))  # the discard port
    assert timeout_s(serve_config(away, await learned_costs(away))) == by_table


# The ingress's side.


async def test_a_reader_asks_redis_once_in_a_while(
    store: CostStore, demo_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CostReader(store)
    before = await reader.of(demo_model)
    await learn_encode(store, CostModel(demo_model, DEVICE), 4.0)
    assert await reader.of(demo_model) is before
    monkeypatch.setattr(room, "FRESH_S", 0)
    assert (await reader.of(demo_model)).estimate(spec()).encode_s == pytest.approx(4.0)


async def test_a_crowd_is_one_question(store: CostStore, cell: Cell, demo_model: Model) -> None:
    await learn_encode(store, CostModel(demo_model, DEVICE), 4.0)
    await cell.redis.config_resetstat()
    reader = CostReader(store)
    await asyncio.gather(*(reader.of(demo_model) for _ in range(50)))
    asked = (await cell.redis.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert asked == 1
    assert (await reader.of(demo_model)).learned.keys() == {DEVICE}


async def test_without_redis_a_replica_learns_alone_and_a_reader_keeps_what_it_knew(
    tmp_path: Path, demo_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FRESH_S", 0)
    server = RedisServer(tmp_path / "redis")
    client: Redis = Redis.from_url(server.start(), decode_responses=True)
    store, costs = CostStore(Cell(client)), CostModel(demo_model, DEVICE)
    reader = CostReader(store)
    await learn_encode(store, costs, 4.0)
    known = await reader.of(demo_model)
    server.stop()
    for _ in range(WINDOW):
        with pytest.raises(ServiceUnavailable):
            await learn_encode(store, costs, 8.0)
    assert costs.encode_s == pytest.approx(8.0)
    assert await reader.of(demo_model) is known
    nothing = await CostReader(store).of(demo_model)
    assert nothing.estimate(spec()) == CostModel(demo_model).estimate(spec())
    await client.aclose()
