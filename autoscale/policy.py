"""The policy: how many replicas each pool should have now.

For each pool, in this order: hold where there is no fresh sample; what the work asks for
(:mod:`autoscale.demand`) and the buffer, within ``min_replicas`` and ``max_replicas``; the limits
in time, which make a pool grow at once and shrink slowly; backoff while replicas fail to start;
then all pools share the budget (:mod:`autoscale.budget`).

Ideas it takes over: a fast and a slow window, and no scale-down amid a spike, from Knative's pod
autoscaler; the maximum of a window of recommendations before scaling down from Kubernetes' HPA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autoscale.budget import Ask, share
from autoscale.demand import demand
from autoscale.flow import FAST_S
from autoscale.memory import highest_of, look, started, usable
from autoscale.values import (
    Bound,
    Budget,
    Decision,
    Demand,
    Memory,
    Outcome,
    Pool,
    PoolMemory,
    Replicas,
    Sample,
)
from autoscale.words import why

STALE_S = 30.0
"""A sample that has not changed for so long says nothing of now."""
SPIKE_KEEP_S = 2 * FAST_S
"""For so long after a spike a pool does not shrink, and the fast window counts."""
MOVE_S = 10.0
UP_LEAST, UP_FACTOR = 8, 2
"""In MOVE_S a pool may double, or come to 8: a wrong figure does not order a hundred replicas."""
DOWN_SHARE = 0.25
"""In MOVE_S a pool may lose so much, or one."""
BACKOFF_S, BACKOFF_S_MAX = 10.0, 300.0
NO_DEMAND = Demand()


@dataclass(frozen=True)
class _Plan:
    """What a pool would get if it were alone."""

    pool: Pool
    replicas: Replicas
    memory: PoolMemory
    target: int
    wanted: int
    bound: Bound
    demand: Demand = NO_DEMAND
    retry_in_s: float | None = None
    age_s: float | None = None


def decide(
    pools: Sequence[Pool],
    samples: Mapping[str, Sample | None],
    replicas: Mapping[str, Replicas],
    budget: Budget,
    memory: Memory,
    now_s: float,
) -> Outcome:
    """A decision for each pool. Never raises on what a sample says.

    ``samples`` has none, or None, for a pool that was not seen; the same sample again (by its
    ``at_s``) is no news. Calling it again with equal arguments gives equal targets.
    """
    plans = [
        _plan(
            pool,
            samples.get(pool.name),
            replicas[pool.name],
            memory.pools.get(pool.name) or PoolMemory(watched_s=now_s),
            now_s,
        )
        for pool in pools
    ]
    given = share(
        [_ask(plan) for plan in plans if plan.bound != "hold"],
        budget,
        _taken([plan for plan in plans if plan.bound == "hold"]),
    )
    decisions = {}
    remembered = {}
    for plan in plans:
        name = plan.pool.name
        got = given.get(name, plan.target)
        decided = plan if got == plan.target else replace(plan, target=got, bound="budget")
        remembered[name] = _remember(decided, now_s)
        decisions[name] = _decision(decided)
    return Outcome(decisions, Memory(remembered))


def _plan(
    pool: Pool, sample: Sample | None, replicas: Replicas, memory: PoolMemory, now_s: float
) -> _Plan:
    was_stale = _is_stale(memory, now_s)
    seen = sample is not None and usable(sample)
    if sample is not None and seen:
        memory = look(memory, sample, replicas, now_s)
    latest = memory.sample
    if latest is None or not seen or _is_stale(memory, now_s):
        return _hold(pool, replicas, memory, now_s)
    if was_stale:  # what happened meanwhile nobody knows
        memory = replace(memory, watched_s=now_s, wants=(), needs=(), loads=(), drained=None)
    memory = started(memory, replicas, latest.start_failures, now_s)

    spiking = memory.spike_s is not None and now_s - memory.spike_s < SPIKE_KEEP_S
    asked = demand(pool, latest, memory, replicas.target, replicas.ready, now_s, spiking=spiking)
    wanted = _within(pool, asked.need + pool.scaling.buffer)
    memory = _note(memory, pool, asked, wanted, replicas.target, now_s)
    plan = _Plan(
        pool=pool,
        replicas=replicas,
        memory=memory,
        target=wanted,
        wanted=wanted,
        bound=_source(pool, asked),
        demand=asked,
        age_s=_age_s(memory, now_s),
    )
    if wanted > replicas.target:
        plan = _grow(plan, now_s)
    elif wanted < replicas.target:
        plan = _shrink(plan, latest, spiking or asked.spike, now_s)
    return _back_off(plan, latest)


def _hold(pool: Pool, replicas: Replicas, memory: PoolMemory, now_s: float) -> _Plan:
    """As many as there are, within the operator's bounds; and no starts that are known to fail."""
    failing = memory.sample is not None and memory.sample.start_failures > 0
    held = replicas.target if failing else _within(pool, replicas.target)
    held = min(held, pool.scaling.max_replicas)
    memory = started(memory, replicas, int(failing), now_s)
    return _Plan(pool, replicas, memory, held, held, "hold", age_s=_age_s(memory, now_s))


def _note(
    memory: PoolMemory, pool: Pool, asked: Demand, wanted: int, target: int, now_s: float
) -> PoolMemory:
    cold_s = asked.cold_start_s
    above_s = now_s if memory.above_since_s is None else memory.above_since_s
    return replace(
        memory,
        spike_s=now_s if asked.spike else memory.spike_s,
        wants=highest_of(memory.wants, wanted, now_s, _keep_s(pool, asked)),
        needs=highest_of(memory.needs, asked.need, now_s, cold_s),
        loads=highest_of(memory.loads, asked.load, now_s, cold_s),
        above_since_s=above_s if wanted > target else None,
    )


def _keep_s(pool: Pool, asked: Demand) -> float:
    """For how long a replica is kept that is not needed: at least for as long as another would take
    to start. So a pool whose jobs come one by one does not start for each, and the time that
    replicas idle or start is at most twice the least possible (as in renting or buying skis)."""
    return max(pool.scaling.keep_alive_s, asked.cold_start_s)


def _grow(plan: _Plan, now_s: float) -> _Plan:
    memory, before, least = plan.memory, plan.replicas.target, plan.pool.scaling.min_replicas
    above_s = now_s - (memory.above_since_s if memory.above_since_s is not None else now_s)
    if above_s < plan.pool.scaling.scaling_delay_s:
        return _at(plan, max(before, least), "scaling_delay")
    base = _base(memory.up, before, now_s)
    most = max(UP_LEAST, UP_FACTOR * base, least)
    return _at(plan, most, "slew") if plan.target > most else plan


def _shrink(plan: _Plan, sample: Sample, spiking: bool, now_s: float) -> _Plan:
    memory, before, scaling = plan.memory, plan.replicas.target, plan.pool.scaling
    most = min(before, scaling.max_replicas)
    if most < before:  # the operator's bound counts at once
        return _at(plan, most, "max_replicas")
    if spiking:
        return _at(plan, before, "spike")
    watched = now_s - memory.watched_s >= _keep_s(plan.pool, plan.demand)
    kept = min(before, int(memory.wants[0][1])) if watched else before
    if kept > plan.target:
        plan = _at(plan, kept, "keep_alive")
    if plan.target < min(sample.busy, before):
        plan = _at(plan, min(sample.busy, before), "busy")
    base = _base(memory.down, before, now_s)
    least = base - max(1, int(DOWN_SHARE * base))
    return _at(plan, min(before, least), "slew") if plan.target < least else plan


def _back_off(plan: _Plan, sample: Sample) -> _Plan:
    """While replicas fail to start, one is tried at a time, and after each failure twice as late.

    The first failure stops nothing that is under way, since the others may well succeed. After the
    second, what was asked for goes back to what is ready: so Serve, which gives a pool up after its
    third failure, forgets them; and a pool that would try for ever leaves the devices alone.
    """
    failures, ready, before = sample.start_failures, plan.replicas.ready, plan.replicas.target
    if not failures:
        return plan
    wait_s = min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(failures - 1, 16))
    left_s = max(0.0, wait_s - sample.start_failure_age_s - (plan.age_s or 0.0))
    if failures == 1:
        most = max(ready, before) if left_s else plan.target
    else:
        most = ready if left_s else ready + 1
    if plan.target <= most:
        return plan
    return replace(plan, target=most, bound="backoff", retry_in_s=left_s)


def _base(move: tuple[float, int] | None, before: int, now_s: float) -> int:
    """Where the move began that is under way, or begins now."""
    return move[1] if move is not None and now_s - move[0] < MOVE_S else before


def _at(plan: _Plan, target: int, bound: Bound) -> _Plan:
    return replace(plan, target=target, bound=bound)


def _within(pool: Pool, replicas: int) -> int:
    return max(pool.scaling.min_replicas, min(pool.scaling.max_replicas, replicas))


def _source(pool: Pool, asked: Demand) -> Bound:
    replicas = asked.need + pool.scaling.buffer
    if replicas > pool.scaling.max_replicas:
        return "max_replicas"
    return "min_replicas" if replicas < pool.scaling.min_replicas else "need"


def _ask(plan: _Plan) -> Ask:
    return Ask(
        pool=plan.pool,
        replicas=plan.target,
        floor=min(plan.target, plan.pool.scaling.min_replicas),
        # For as long as another would take to start, what was urgent is still so: else a pool
        # whose jobs come one by one would lose its replica after each, to get it back.
        need=int(plan.memory.needs[0][1]),
        wanted=plan.wanted,
        before=plan.replicas.target,
        load=plan.memory.loads[0][1],
    )


def _taken(held: Sequence[_Plan]) -> Budget:
    return Budget(
        gpus=sum(plan.target * plan.pool.gpus for plan in held),
        cpus=sum(plan.target * plan.pool.cpus for plan in held),
    )


def _remember(plan: _Plan, now_s: float) -> PoolMemory:
    memory, before, target = plan.memory, plan.replicas.target, plan.target
    if target > before:
        memory = replace(
            memory,
            up=(memory.up if _under_way(memory.up, now_s) else (now_s, before)),
        )
    elif target < before:
        memory = replace(
            memory, down=(memory.down if _under_way(memory.down, now_s) else (now_s, before))
        )
    return memory


def _under_way(move: tuple[float, int] | None, now_s: float) -> bool:
    return move is not None and now_s - move[0] < MOVE_S


def _age_s(memory: PoolMemory, now_s: float) -> float | None:
    return None if memory.changed_s is None else now_s - memory.changed_s


def _is_stale(memory: PoolMemory, now_s: float) -> bool:
    age_s = _age_s(memory, now_s)
    return age_s is None or age_s > STALE_S


def _decision(plan: _Plan) -> Decision:
    decision = Decision(
        pool=plan.pool.name,
        target=plan.target,
        before=plan.replicas.target,
        ready=plan.replicas.ready,
        wanted=plan.wanted,
        bound=plan.bound,
        why="",
        demand=plan.demand,
        sample=plan.memory.sample,
        sample_age_s=plan.age_s,
        retry_in_s=plan.retry_in_s,
    )
    return replace(decision, why=why(plan.pool, decision))
