"""Fairness in Lua, in a real Redis, against fairness in Python: equal to the last bit."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from typing import Any

import pytest
from redis.asyncio import Redis

from serving.plan.classes import CLASSES, DEFAULT_POLICIES, ServiceClass
from serving.plan.fair import (
    CANDIDATES,
    NEXT,
    OWED_SEAT,
    PATIENCE,
    WINDOW_DECAY,
    after_lease,
    class_order,
    corrected,
    is_overdue,
    lifted,
    passed_over,
    window,
    woken,
)

pytestmark = pytest.mark.asyncio

LUA = (files("serving.jobs") / "lua" / "_fair.lua").read_text()
EXACT = "local function exact(number) return string.format('%.17g', number) end\n"
SHARES = {name: policy.share for name, policy in DEFAULT_POLICIES.items()}
CALLS = 500


def credits(draw: random.Random) -> dict[ServiceClass, float]:
    values = (0.0, draw.uniform(-1e6, 1e6), draw.uniform(-1, 1), draw.randrange(-9, 9))
    return {each: draw.choice(values) for each in CLASSES if draw.random() < 0.9}


def some(draw: random.Random) -> list[ServiceClass]:
    return draw.sample(CLASSES, draw.randrange(1, 4))


async def evaluate(redis: Redis, script: str, *values: Any) -> Any:
    return await redis.eval(LUA + EXACT + script, 0, *values)


async def test_the_constants_are_the_same(redis: Redis) -> None:
    found = await evaluate(redis, "return {CANDIDATES, exact(WINDOW_DECAY), unpack(CLASSES)}")
    assert (found[0], float(found[1]), found[2:]) == (CANDIDATES, WINDOW_DECAY, list(CLASSES))
    found = await evaluate(redis, "return {PATIENCE, OWED_SEAT, exact(NEXT)}")
    assert (*found[:2], float(found[2])) == (PATIENCE, OWED_SEAT, NEXT)
    seats = await evaluate(redis, "return {SEATS.burst, SEATS.standard, SEATS.relaxed}")
    assert seats == [0, 1, 2]


async def test_classes_go_in_the_same_order(redis: Redis) -> None:
    draw = random.Random(1)  # noqa: S311
    orders = set()
    for _ in range(CALLS):
        had, waiting = credits(draw), some(draw)
        found = await evaluate(
            redis,
            "return class_order(cjson.decode(ARGV[1]), cjson.decode(ARGV[2]))",
            json.dumps(had),
            json.dumps(dict.fromkeys(waiting, True)),
        )
        assert found == list(class_order(had, waiting))
        orders.add(tuple(found))
    assert len(orders) > 10


async def test_a_lease_moves_credits_alike(redis: Redis) -> None:
    draw = random.Random(2)  # noqa: S311
    script = """
    local after = after_lease(cjson.decode(ARGV[1]), cjson.decode(ARGV[2]), ARGV[3],
      tonumber(ARGV[4]), cjson.decode(ARGV[5]))
    return {exact(after.burst), exact(after.standard), exact(after.relaxed)}"""
    for _ in range(CALLS):
        # What Lua reads of JSON has 14 digits, so the test's numbers do not need more.
        had = {name: float(f"{value:.9g}") for name, value in credits(draw).items()}
        waiting, charge_ms = some(draw), draw.randrange(1, 10**6)
        leased = draw.choice(waiting)
        found = await evaluate(
            redis,
            script,
            json.dumps(had),
            json.dumps(dict.fromkeys(waiting, True)),
            leased,
            charge_ms,
            json.dumps(SHARES),
        )
        expected = after_lease(had, waiting, leased, charge_ms, SHARES)
        assert [float(each) for each in found] == [expected[each] for each in CLASSES]


def call(name: str, arguments: int) -> str:
    """Numbers cross as text with 17 digits; '' is none."""
    taken = ", ".join(f"tonumber(ARGV[{n + 1}])" for n in range(arguments))
    return f"return exact({name}({taken}))"


def given(*values: float | None) -> list[str]:
    return ["" if value is None else repr(float(value)) for value in values]


async def test_counters_move_alike(redis: Redis) -> None:
    draw = random.Random(3)  # noqa: S311
    raised = 0
    for _ in range(CALLS):
        counter, least = (draw.choice([None, draw.uniform(-1e6, 1e9)]) for _ in range(2))
        reached, width = draw.uniform(0, 1e9), draw.choice([0.0, draw.uniform(0, 1e8)])
        floor = reached if least is None else least
        last = draw.choice([-1.0, floor, floor + draw.uniform(-1, 2) * width])
        expected = lifted(counter, least, reached, last, width)
        raised += expected > floor
        found = await evaluate(
            redis, call("lifted", 5), *given(counter, least, reached, last, width)
        )
        assert float(found) == expected
        mine, by = draw.uniform(0, 1e9), draw.uniform(-1e6, 1e6)
        found = await evaluate(redis, call("woken", 4), *given(mine, least, reached, width))
        assert float(found) == woken(mine, least, reached, width)
        found = await evaluate(redis, call("corrected", 3), *given(mine, by, counter))
        assert float(found) == corrected(mine, by, counter)
    assert 50 < raised < CALLS - 50


async def test_windows_move_alike(redis: Redis) -> None:
    draw = random.Random(4)  # noqa: S311
    passed = """
    local before, charge, weight = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    return {exact(passed_over(before, charge, weight, ARGV[4] == '1')),
      is_overdue(before, charge) and 1 or 0}"""
    overdue = 0
    for _ in range(CALLS):
        sizes = draw.uniform(0, 1e6), float(draw.randrange(1, 10**6)), draw.uniform(0.001, 9)
        assert float(await evaluate(redis, call("window", 3), *given(*sizes))) == window(*sizes)
        is_least = draw.random() < 0.3
        ms, is_so = await evaluate(redis, passed, *given(*sizes), int(is_least))
        assert float(ms) == passed_over(*sizes, is_least=is_least)
        assert bool(is_so) == is_overdue(*sizes[:2])
        overdue += is_so
    assert 10 < overdue < CALLS - 10
