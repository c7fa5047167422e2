"""Everything that Redis holds of a cell, read at one moment, and what must be true of it whatever
happened before."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from serving.jobs import TERMINAL, State
from serving.jobs.cell import CELL
from serving.plan.classes import CLASSES
from serving.plan.rank import ORDERS
from tests.ledger_state import ledger_problems

READ = """
local READ = {string = {'GET'}, hash = {'HGETALL'}, set = {'SMEMBERS'},
  zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, list = {'LLEN'}, stream = {'XLEN'}}
local found = {redis.call('TIME')}
for _, name in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', name).ok
  if READ[kind] then  -- the ledger's stream and its lists are for quota.verify
    local command, first, last, how = unpack(READ[kind])
    local value = how and redis.call(command, name, first, last, how) or redis.call(command, name)
    if string.find(name, ':heads:', 1, true) then  -- these are not text
      value = string.gsub(value, '.', function(one)
        return string.format('%02x', string.byte(one))
      end)
    end
    found[#found + 1] = {name, kind, value}
  end
end
return cjson.encode(found)"""
"""As JSON, which the client is given in one piece: it reads Redis's own protocol much slower."""

HEAD = struct.Struct("<dddH")
"""Before each place that a lease keeps: created, total and left (ms), and how long the place is."""

LASTING = {
    *("schema", "seq", "fence", "seen", "ahead", "tiers", "pools", "parked"),
    *("ledger", "ledger:accounts", "ledger:sums", "ledger:verified", "grants_expiring"),
}
"""Keys that stay when every job is gone, and beside them those that begin so:"""
LASTING_OF = (
    "counters:",
    "floors:",
    "fair:",
    "backlog:",
    "ended:",
    "counts:",
    *("refused:", "steps:", "times:", "objectives:", "slo:", "starts:", "startups:"),
    "emptying:",
    "user:",
    "replica",
    *("credits:", "credit:", "grants:", "entries:"),
)
"""What tenants were leased, sums by pool, what is set for users, replicas that live, and what users
were given and paid."""
PASSING_OF = ("used:", "rate:", "same:", "idempotent:", "answer:", "gone:", "last_lease:", "hold:")
"""They go by themselves: each has a time to live."""


@dataclass
class QueueState:
    """By key, without the cell's name; ``now_ms`` is by the clock of the scripts."""

    now_ms: int = 0
    strings: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    sets: dict[str, set[str]] = field(default_factory=dict)
    zsets: dict[str, dict[str, float]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    """Of lists and streams."""

    @property
    def names(self) -> set[str]:
        return {*self.strings, *self.hashes, *self.sets, *self.zsets, *self.lengths}

    def of(self, kind: str) -> dict[str, dict[str, str]]:
        """The hashes of this kind, by the rest of their names."""
        start = f"{kind}:"
        return {
            name.removeprefix(start): value
            for name, value in self.hashes.items()
            if name.startswith(start)
        }

    @property
    def jobs(self) -> dict[str, dict[str, str]]:
        return self.of("job")

    def tier(self, user: str) -> tuple[float, int | None]:
        """The weight of a user's tier, and how many jobs it may run at once."""
        tiers = self.hashes.get("tiers", {})
        own = self.hashes.get(f"user:{user}", {}).get("tier", "")
        for name in (own, tiers.get("default", "")):
            if f"{name}:weight" in tiers:
                most = tiers.get(f"{name}:running_jobs")
                return float(tiers[f"{name}:weight"]), int(most) if most else None
        return 1.0, None


async def read_state(redis: Redis) -> QueueState:
    """All of it, in one script: nothing happens in between."""
    (seconds, micros), *found = json.loads(await redis.eval(READ, 0))
    state = QueueState()
    for name, kind, value in found:
        assert name.startswith(f"{CELL}:"), f"{name} is of no cell"
        name = name.removeprefix(f"{CELL}:")
        pairs = dict(zip(value[::2], value[1::2], strict=True)) if kind in ("hash", "zset") else {}
        match kind:
            case "string":
                state.strings[name] = value
            case "hash":
                state.hashes[name] = pairs
            case "set":
                state.sets[name] = set(value)
            case "zset":
                state.zsets[name] = {member: float(score) for member, score in pairs.items()}
            case "list" | "stream":
                state.lengths[name] = value
    ahead_ms = float(state.strings.get("ahead", 0))
    by_redis_ms = int(seconds) * 1000 + int(micros) // 1000
    state.now_ms = max(int(by_redis_ms + ahead_ms), int(state.strings.get("seen", 0)))
    return state


def check(state: QueueState, *, retiered: Collection[str] = ()) -> None:
    """Whatever happened: each job is in one place, sums are sums, who may run may be leased, and
    credits are where they should be.

    ``retiered``: users whose tier changed while they waited; what they may is looked at again when
    one of their jobs is leased or ends, or by the next tidying up.
    """
    assert list(_problems(state, retiered)) == []


def _problems(state: QueueState, retiered: Collection[str]) -> Iterator[str]:
    places: dict[str, set[str]] = {}
    lines: dict[str, set[str]] = {}
    running: dict[str, set[str]] = {}
    streamed: dict[str, set[str]] = {}
    waits: dict[str, Counter[str]] = {}
    backlog: Counter[tuple[str, str]] = Counter()
    owned: dict[str, set[str]] = {}
    for job_id, job in state.jobs.items():
        pool, user, service_class = job["pool"], job["user"], job["class"]
        inline = "inline" in job
        if not inline:
            which = "audio" if job_id.startswith("audio_") else "jobs"
            owned.setdefault(f"user:{user}:{which}", set()).add(job_id)
        if ("charged_ms" in job) != (job["state"] == State.IN_PROGRESS):
            yield f"{job_id} is {job['state']} and charged {job.get('charged_ms')}"
        if job["state"] == State.QUEUED:
            place = f"queued:{pool}"
            waits.setdefault(user, Counter())[f"{pool} {service_class}"] += 1
            backlog[f"backlog:{pool}", f"{service_class}:jobs"] += 1
            backlog[f"backlog:{pool}", f"{service_class}:ms"] += _left_ms(job)
            saved_ms = int(job["est_device_ms"]) - _left_ms(job)
            backlog[f"backlog:{pool}", f"{service_class}:saved_ms"] += saved_ms
            for order in ORDERS:
                line = f"line:{pool}:{service_class}:{user}:{order.name}"
                lines.setdefault(line, set()).add(_place(job_id, job))
        elif job["state"] == State.IN_PROGRESS:
            place = f"leased:{pool}"
            (streamed if inline else running).setdefault(
                f"user:{user}:{'inline' if inline else 'running'}", set()
            ).add(job_id)
        else:
            assert job["state"] in TERMINAL
            place = "expiring"
        places.setdefault(place, set()).add(job_id)
    for kind in ("queued", "leased", "expiring"):
        ours = {name: ids for name, ids in places.items() if name.startswith(kind)}
        yield from _differences("jobs by state", ours, _sets(state, kind))
    yield from _differences("lines", lines, _sets(state, "line:"))
    yield from _kept_heads(state)
    yield from _differences("running", running, _keys(state, "user:", ":running"))
    yield from _differences("streamed", streamed, _keys(state, "user:", ":inline"))
    listed = _sets(state, "user:", ":jobs") | _sets(state, "user:", ":audio")
    yield from _differences("jobs of users", owned, listed)
    yield from _differences(
        "lines of users",
        {f"user:{user}:lines": dict(where) for user, where in waits.items()},
        {
            name: {where: int(jobs) for where, jobs in values.items()}
            for name, values in state.hashes.items()
            if name.startswith("user:") and name.endswith(":lines")
        },
    )
    sums = {
        (name, field): int(value)
        for name, values in state.hashes.items()
        if name.startswith("backlog:")
        for field, value in values.items()
        if int(value) and ":ended_" not in field
    }
    yield from _differences("backlog", dict(backlog), sums)
    yield from ledger_problems(state)
    yield from _who_may_be_leased(state, waits, running, retiered)


def _left_ms(job: Mapping[str, str]) -> int:
    """All of it, until a checkpoint saves some."""
    return int(job.get("left_device_ms", job["est_device_ms"]))


def _place(job_id: str, job: Mapping[str, str]) -> str:
    numbers = (int(job["created_ms"]), int(job["est_device_ms"]), _left_ms(job))
    fits = (job.get("attempts", "0"), job["rows"], job["shape"])
    return " ".join((f"{int(job['seq']):012}", *map(str, numbers), *fits, job_id))


def _kept_heads(state: QueueState) -> Iterator[str]:
    """What leases keep of the lines is what is at their heads."""
    for name, in_hex in state.strings.items():
        if name.startswith("heads:"):
            of = name.removeprefix("heads:")
            lines = [state.zsets.get(f"line:{of}:{order.name}", {}) for order in ORDERS]
            heads = [min(line, key=lambda each: (line[each], each)) for line in lines if line]
            kept = list(_heads(bytes.fromhex(in_hex)))
            if kept != [(*_numbers(head), head) for head in dict.fromkeys(heads)]:
                yield f"{name} is {kept}, at the heads are {heads}"


def _heads(kept: bytes) -> Iterator[tuple[float, float, float, str]]:
    """Of each job what its rank needs, and its place."""
    while kept:
        created_ms, total_ms, left_ms, length = HEAD.unpack_from(kept)
        end = HEAD.size + length
        yield created_ms, total_ms, left_ms, kept[HEAD.size : end].decode()
        kept = kept[end:]


def _numbers(place: str) -> tuple[float, ...]:
    return tuple(map(float, place.split(" ")[1:4]))


def _who_may_be_leased(
    state: QueueState,
    waits: Mapping[str, Collection[str]],
    running: dict[str, set[str]],
    retiered: Collection[str],
) -> Iterator[str]:
    parked = state.sets.get("parked", set())
    for user, where in waits.items():
        most = state.tier(user)[1]
        may = most is None or len(running.get(f"user:{user}:running", ())) < most
        for each in where:
            pool, service_class = each.split(" ")
            counter = state.zsets.get(f"counters:{pool}:{service_class}", {}).get(user)
            ready = state.zsets.get(f"ready:{pool}:{service_class}", {}).get(user)
            if counter is None:
                yield f"{user} waits in {each} and has no counter"
            if ready not in (None, counter):
                yield f"{user} is ready in {each} at {ready} and counts {counter}"
            if user not in retiered and (ready is not None) != may:
                yield f"{user} may {'' if may else 'not '}run another, ready in {each}: {ready}"
            if ready is None and user not in parked:
                yield f"{user} is neither ready in {each} nor parked"
    for name, members in state.zsets.items():
        if name.startswith("ready:"):
            line = name.removeprefix("ready:").replace(":", " ")
            for user in members:
                if line not in waits.get(user, ()):
                    yield f"{user} is ready in {line} where nothing of theirs waits"


def check_nothing_left(state: QueueState) -> None:
    """Once every job is forgotten: no key but those that last, and those that go by themselves."""
    left = {
        name
        for name in state.names - LASTING
        if not name.startswith((*LASTING_OF, *PASSING_OF, "garbage"))
    }
    assert left == set()
    assert not [
        name
        for name in state.names
        if name.endswith((":jobs", ":audio", ":running", ":inline", ":lines"))
    ]
    for name, values in state.hashes.items():
        if name.startswith("backlog:"):
            waiting = {value for field, value in values.items() if ":ended_" not in field}
            assert waiting <= {"0"}


def counters(state: QueueState, pool: str) -> dict[str, dict[str, float]]:
    """By class, of every tenant."""
    return {each: state.zsets.get(f"counters:{pool}:{each}", {}) for each in CLASSES}


def close(expected: dict[str, float]) -> Any:
    return pytest.approx(expected, abs=1e-6, rel=1e-12)


def _sets(state: QueueState, start: str, end: str = "") -> dict[str, set[str]]:
    both = {**state.sets, **{name: set(members) for name, members in state.zsets.items()}}
    return _named(both, start, end)


def _keys(state: QueueState, start: str, end: str) -> dict[str, set[str]]:
    return _named({name: set(values) for name, values in state.hashes.items()}, start, end)


def _named(sets: Mapping[str, set[str]], start: str, end: str) -> dict[str, set[str]]:
    return {
        name: members
        for name, members in sets.items()
        if name.startswith(start) and name.endswith(end)
    }


def _differences(what: str, expected: dict[Any, Any], found: dict[Any, Any]) -> Iterator[str]:
    for name in sorted({*expected, *found}, key=str):
        if (expected.get(name) or None) != (found.get(name) or None):
            yield f"{what}: {name} is {found.get(name)}, must be {expected.get(name)}"
