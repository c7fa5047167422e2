"""How many replicas the work of one pool asks for, were there neither time limits nor a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoscale.flow import FAST_S, SLOW_S, flow, is_spike, regular
from autoscale.values import Demand, Pool, PoolMemory, Sample

CLAMP = 0.5
"""A new replica is counted on for at least this part of an objective. Where the cold start takes
more than the rest, no replica that starts now comes in time, and asking for hundreds would not
help: the buffer has to. When this was tuned on the loads of ``reelserve bench autoscale``, 0.25
took 3% more replica-seconds for nothing, and at 1 a sixth of a spike's standard jobs was late."""
UTILIZATION = 0.9
"""Of replicas that do just as much as comes: at 1, a queue grows without bound."""
REPLICAS_MAX = 1_000_000
EPSILON = 1e-9


@dataclass(frozen=True)
class Supply:
    """What a pool has: ``ready`` replicas that do ``rate`` of work in a second, some more in
    ``soon_s`` from now each, and any other only after ``cold_s``."""

    ready: int
    soon_s: Sequence[float]
    cold_s: float
    rate: float


@dataclass(frozen=True)
class Backlog:
    """Work of a class and of those that go before it."""

    queued_s: float = 0.0
    queued_jobs: int = 0
    in_flight_s: float = 0.0
    in_flight_jobs: int = 0

    def within(self, seconds: float, rate: float) -> float:
        """Seconds of replicas that it takes to do all this in ``seconds``.

        No job takes more than one replica, however much of it is left: else a few long jobs would
        ask for many.
        """
        return min(self.queued_s / rate, self.queued_jobs * seconds) + min(
            self.in_flight_s / rate, self.in_flight_jobs * seconds
        )

    @property
    def jobs(self) -> int:
        return self.queued_jobs + self.in_flight_jobs


def demand(
    pool: Pool,
    sample: Sample,
    memory: PoolMemory,
    target: int,
    ready: int,
    now_s: float,
    *,
    spiking: bool,
) -> Demand:
    """``target`` replicas should be there by now, ``ready`` are. ``spiking``: a spike was seen
    lately, so that the fast window counts."""
    cold_s, rate = cold_start_s(pool, sample, memory), memory.rate
    soon_s = [max(0.0, asked_s + cold_s - now_s) for asked_s in memory.starts]
    supply = Supply(ready, soon_s, cold_s, rate)
    fast = flow(memory.arrivals, now_s, FAST_S)
    spike = is_spike(fast, flow(memory.arrivals, now_s, SLOW_S))
    slow = regular(memory.arrivals, now_s, SLOW_S)
    comes = regular(memory.arrivals, now_s, FAST_S) if spike or spiking else slow
    coming_jobs = math.floor(sum(comes.jobs.values()) * cold_s + EPSILON)

    found = Demand()
    coming, load = 0.0, 0.0
    for name, objective_s in pool.objectives_s.items():
        if name not in sample.classes:
            continue
        backlog = _down_to(pool, sample, name)
        coming += comes.work.get(name, 0.0)
        left_s = max(objective_s - sample.classes[name].oldest_wait_s, CLAMP * objective_s)
        for by, n, most in (
            ("drain", _drain(backlog, supply, objective_s, left_s), backlog.jobs),
            ("horizon", _horizon(backlog, coming, supply, objective_s), backlog.jobs + coming_jobs),
        ):
            if min(n, most) > found.need:
                clamped = left_s - cold_s < CLAMP * objective_s
                found = Demand(min(n, most), "jobs" if n > most else by, name, clamped=clamped)  # type: ignore[arg-type]
        load = max(load, backlog.within(left_s, rate) / left_s)

    # A pool that is empty most of the time needs no replica for what comes in the long run.
    arriving = sum(slow.work.values()) / rate
    most = max([sample.jobs, *(int(n) for _, n in memory.jobs)]) + coming_jobs
    sustain = min(_ceil(arriving / UTILIZATION), most)
    if arriving <= target:  # enough, so that a pool on the border does not go to and fro
        sustain = min(sustain, target)
    if sustain > found.need:
        found = Demand(sustain, "sustain")
    if found.need == 0 and sample.jobs > 0:
        found = Demand(1, "drain")
    return Demand(
        need=found.need,
        by=found.by,
        critical=found.critical,
        load=max(load, min(arriving, most)),
        work_s=sample.work_s,
        jobs=sample.jobs,
        cold_start_s=cold_s,
        clamped=found.clamped,
        rate=rate,
        fast=sum(fast.work.values()),
        slow=sum(slow.work.values()),
        forecast=sum(comes.work.values()),
        spike=spike,
    )


def cold_start_s(pool: Pool, sample: Sample, memory: PoolMemory) -> float:
    """From a decision to a replica that leases: as this policy saw it happen, nodes that had to
    come included; else what replicas say of their own start; else what the operator expects."""
    if memory.cold_starts_s:
        ordered = sorted(memory.cold_starts_s)
        return ordered[math.ceil(0.9 * len(ordered)) - 1]
    if sample.cold_start_s is not None:
        return sample.cold_start_s
    return pool.scaling.cold_start_s


def _down_to(pool: Pool, sample: Sample, last: str) -> Backlog:
    """What goes before the class ``last``, and its own."""
    names = list(pool.objectives_s)
    seen = [
        sample.classes[name] for name in names[: names.index(last) + 1] if name in sample.classes
    ]
    in_flight_jobs = sum(each.in_flight_jobs for each in seen)
    return Backlog(
        queued_s=sum(each.queued_s for each in seen),
        queued_jobs=sum(each.queued_jobs for each in seen),
        in_flight_s=sum(each.in_flight_s for each in seen),
        # Jobs that run together leave the other replicas to those that wait.
        in_flight_jobs=min(in_flight_jobs, sample.busy or in_flight_jobs),
    )


def _drain(backlog: Backlog, supply: Supply, objective_s: float, left_s: float) -> int:
    """Replicas that do the work within ``left_s``.

    Those that start are there for what their start leaves of it. A replica that was asked for a
    while ago comes sooner than one that is asked for now: so none is ordered twice.
    """
    short_s = backlog.within(left_s, supply.rate) - supply.ready * left_s
    if short_s <= EPSILON:
        return _ceil(backlog.within(left_s, supply.rate) / left_s)
    least_s = CLAMP * objective_s
    n = supply.ready
    for comes_s in sorted(supply.soon_s):
        if short_s <= EPSILON:
            return n
        short_s -= max(left_s - comes_s, least_s)
        n += 1
    return n + _ceil(short_s / max(left_s - supply.cold_s, least_s))


def _horizon(backlog: Backlog, coming: float, supply: Supply, objective_s: float) -> int:
    """Replicas that do, within the objective, what will be there when a new one is."""
    cold_s = supply.cold_s
    done_s = supply.ready * cold_s + sum(max(0.0, cold_s - comes_s) for comes_s in supply.soon_s)
    later_s = backlog.within(objective_s, supply.rate) + coming * cold_s / supply.rate - done_s
    return _ceil(max(0.0, later_s) / objective_s)


def _ceil(value: float) -> int:
    return math.ceil(min(value, REPLICAS_MAX) - EPSILON)
