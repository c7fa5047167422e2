"""The rank in Lua, in a real Redis, against the rank in Python: equal to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from redis.asyncio import Redis

from serving.plan.rank import ORDERS, Contender, urgency, worth_preempting

pytestmark = pytest.mark.asyncio

LUA = (files("serving.jobs") / "lua" / "_rank.lua").read_text()
NOW_MS = 1_795_000_000_000
CALLS = 200
ROUNDS = 25

# Numbers cross as text with 17 digits: a double survives that, and a reply of Redis's own is cut
# to an integer.
READ = """
local at = 0
local function take(count)
  local taken = {}
  for i = 1, count do
    at = at + 1
    taken[i] = tonumber(ARGV[at])
  end
  return taken
end
local function exact(number) return string.format('%.17g', number) end
local out = {}
while at < #ARGV do
"""
RANKS = READ + "  out[#out + 1] = exact(urgency(unpack(take(4))))\nend\nreturn out"
SCORES = (
    READ
    + """
  for _, score in ipairs(order_scores(unpack(take(3)))) do out[#out + 1] = exact(score) end
end
return out"""
)
WORTH = (
    READ
    + """
  local winner, victim = take(4), take(4)
  out[#out + 1] = worth_preempting(winner, victim, unpack(take(6))) and 1 or 0
end
return out"""
)


def ms(draw: random.Random, scale: float) -> float:
    """A duration or a time, often whole, sometimes extreme."""
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice([0, 1, 2, 3, scale, 2.0**31, 2.0**53 - 1])
    if kind == 1:
        return draw.uniform(0, scale)
    return draw.randrange(int(2 ** draw.uniform(0, 30)) + 1)


def contender(draw: random.Random) -> Contender:
    """Mostly one whose deadline is near, on either side."""
    total = ms(draw, 60_000)
    remaining = draw.choice([total, draw.uniform(0, total), round(draw.uniform(0, total))])
    slack = draw.choice([0, 1, -1, ms(draw, 60_000), -ms(draw, 60_000)])
    created = NOW_MS - 3 * total + remaining + slack
    return Contender(draw.choice([created, NOW_MS - ms(draw, 1e6)]), total, remaining)


def seated(draw: random.Random) -> Contender:
    return replace(contender(draw), seat=draw.choice([0, 0, 0, 1, 2]))


def plain(job: Contender) -> tuple[float, float, float]:
    return job.created_ms, job.total_ms, job.remaining_ms


async def evaluate(redis: Redis, script: str, rows: list[tuple[float, ...]]) -> list[Any]:
    values = [repr(float(value)) for row in rows for value in row]
    found: list[Any] = await redis.eval(LUA + script, 0, *values)
    return found


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_the_rank_in_lua_is_the_rank_in_python(redis: Redis, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    jobs = [(contender(draw), NOW_MS + draw.choice([0, ms(draw, 1e6)])) for _ in range(CALLS)]
    found = await evaluate(redis, RANKS, [(*plain(job), now) for job, now in jobs])
    assert [float(each) for each in found] == [urgency(job, now) for job, now in jobs]
    waits = {
        (now > job.latest_start_ms, now - job.created_ms > 4 * job.total_ms) for job, now in jobs
    }
    assert {(False, False), (True, False), (True, True)} <= waits


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_the_queue_orders_by_the_same_scores(redis: Redis, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    jobs = [contender(draw) for _ in range(CALLS)]
    found = await evaluate(redis, SCORES, [plain(job) for job in jobs])
    assert [float(each) for each in found] == [order.score(job) for job in jobs for order in ORDERS]


async def test_the_queue_keeps_the_same_orders(redis: Redis) -> None:
    names = """
    local names = {}
    for i, order in ipairs(ORDERS) do names[i] = order.name end
    return names"""
    assert await redis.eval(LUA + names, 0) == [order.name for order in ORDERS]


async def test_a_preemption_worth_it_in_python_is_worth_it_in_lua(redis: Redis) -> None:
    draw = random.Random(0)  # noqa: S311
    rows: list[tuple[float, ...]] = []
    expected: list[bool] = []
    for _ in range(CALLS * ROUNDS):
        winner, victim = seated(draw), seated(draw)
        free_ms = draw.choice([victim.remaining_ms, ms(draw, 60_000)])
        ran_ms, quantum_ms = ms(draw, 60_000), draw.choice([0, 1000, ms(draw, 1000)])
        cost_ms, preemptions = draw.choice([0, ms(draw, 5_000)]), draw.randrange(4)
        rows.append((*plain(winner), winner.seat, *plain(victim), victim.seat, NOW_MS))
        rows[-1] += (free_ms, ran_ms, preemptions, quantum_ms, cost_ms)
        expected.append(
            worth_preempting(
                winner,
                victim,
                NOW_MS,
                free_ms=free_ms,
                ran_ms=ran_ms,
                preemptions=preemptions,
                quantum_ms=quantum_ms,
                cost_ms=cost_ms,
            )
        )
    found: list[Any] = []
    for start in range(0, len(rows), CALLS):
        found += await evaluate(redis, WORTH, rows[start : start + CALLS])
    assert [bool(each) for each in found] == expected
    assert 100 < sum(expected) < len(expected) - 100
