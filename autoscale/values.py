"""What the policy is told, what it decides, and what it remembers between two decisions.

Work is in seconds of one device by the cost model's estimates ("GPU-seconds"); times are seconds of
the caller's monotonic clock unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Bound = Literal[
    "need",
    "min_replicas",
    "max_replicas",
    "scaling_delay",
    "keep_alive",
    "busy",
    "spike",
    "slew",
    "budget",
    "backoff",
    "hold",
]
"""What the target came from: the work itself (``need``, buffer included), or what held it back."""


@dataclass(frozen=True)
class Scaling:
    """What an operator says of a pool.

    ``buffer`` replicas are there beyond what the work needs, idle ones included: with a buffer of 0
    and ``min_replicas`` of 0 a pool without work goes to zero. A replica that is not needed is kept
    for ``keep_alive_s``; none is added before it was needed for ``scaling_delay_s``.
    ``cold_start_s`` is from the decision to the first lease, until it has been measured.
    """

    min_replicas: int = 0
    max_replicas: int = 1
    buffer: int = 0
    keep_alive_s: float = 60.0
    scaling_delay_s: float = 0.0
    cold_start_s: float = 60.0


@dataclass(frozen=True)
class Server:
    """A model server that does the work of a pool, in place of replicas of ours. Whoever runs it
    may follow what is decided.

    ``model`` is its name there, and a request takes ``request_s`` by the catalog. ``leased``: each
    request of ours holds a lease for as long as it is there, so that it is in flight already.
    """

    model: str
    request_s: float
    leased: bool = False


@dataclass(frozen=True)
class Pool:
    """What does not change between decisions.

    ``objectives_s`` is by class, the first to be served first, how long a job may wait for its
    first step. A replica takes ``gpus`` and ``cpus``; its work is worth ``price`` (of any unit that
    all pools share) for each second of a device. A ``server`` does its work, or replicas of ours.
    """

    name: str
    scaling: Scaling
    objectives_s: Mapping[str, float]
    gpus: float = 0.0
    cpus: float = 0.0
    price: float = 1.0
    server: Server | None = None


@dataclass(frozen=True)
class ClassSample:
    """One class of a pool: what may be leased now, what is running, what ever came.

    ``in_flight_s`` is what is left of the jobs that run. ``parked_s`` waits too, but for users who
    run as many jobs as they may: more replicas would not help them. ``oldest_wait_s`` is 0 when
    none waits.
    """

    queued_jobs: int = 0
    queued_s: float = 0.0
    in_flight_jobs: int = 0
    in_flight_s: float = 0.0
    parked_s: float = 0.0
    oldest_wait_s: float = 0.0
    arrived_jobs: float = 0.0
    arrived_s: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A pool as it was seen at one moment.

    ``at_s`` is that moment by the clock of whoever saw it: it is compared only with that of other
    samples of the same pool, never with the clock of the decision. ``busy`` replicas run something.
    ``cold_start_s`` was measured (None: never). ``start_failures`` starts failed since the last
    that succeeded, the latest of them ``start_failure_age_s`` ago.
    """

    at_s: float
    classes: Mapping[str, ClassSample]
    busy: int = 0
    cold_start_s: float | None = None
    start_failures: int = 0
    start_failure_age_s: float = 0.0

    @property
    def jobs(self) -> int:
        return sum(each.queued_jobs + each.in_flight_jobs for each in self.classes.values())

    @property
    def work_s(self) -> float:
        return sum(each.queued_s + each.in_flight_s for each in self.classes.values())

    @property
    def queued_s(self) -> float:
        return sum(each.queued_s for each in self.classes.values())

    @property
    def parked_s(self) -> float:
        return sum(each.parked_s for each in self.classes.values())

    @property
    def arrived_s(self) -> float:
        return sum(each.arrived_s for each in self.classes.values())


@dataclass(frozen=True)
class Replicas:
    """Of a pool: how many there should be now, and how many of these are ready."""

    target: int
    ready: int


@dataclass(frozen=True)
class Budget:
    """What all pools together may take; None is no bound."""

    gpus: float | None = None
    cpus: float | None = None


@dataclass(frozen=True)
class Demand:
    """What the work of a pool asks for, and the figures it was computed from.

    ``need`` is the number of replicas, ``by`` the term that gave it: ``drain`` (what waits begins
    in time), ``horizon`` (so will what has come by the time that a new replica is there),
    ``sustain`` (as much is done as comes), ``jobs`` (no more replicas than jobs) or ``idle``.
    ``load`` is how many replicas, all of them ready, would just be in time: over those that there
    are it is by how much the pool is late. ``rate`` is the work that a replica does in a second,
    ``fast``, ``slow`` and ``forecast`` are the work that comes in a second: lately, in the long
    run, and until a new replica is there. ``critical`` is the class that decided; ``clamped``: the
    cold start leaves too little of its objective.
    """

    need: int = 0
    by: Literal["drain", "horizon", "sustain", "jobs", "idle"] = "idle"
    critical: str = ""
    load: float = 0.0
    work_s: float = 0.0
    jobs: int = 0
    cold_start_s: float = 0.0
    clamped: bool = False
    rate: float = 1.0
    fast: float = 0.0
    slow: float = 0.0
    forecast: float = 0.0
    spike: bool = False


@dataclass(frozen=True)
class Decision:
    """How many replicas a pool should have now, and why.

    ``wanted`` is what the pool would get without time limits and budget; ``bound`` is what made
    ``target`` what it is. ``sample_age_s`` is for how long the sample has not changed (None: there
    never was one).
    """

    pool: str
    target: int
    before: int
    ready: int
    wanted: int
    bound: Bound
    why: str
    demand: Demand
    sample: Sample | None
    sample_age_s: float | None
    retry_in_s: float | None = None


@dataclass(frozen=True)
class Arrival:
    """What had come by ``t_s`` since there is a memory: by class (work in seconds, jobs)."""

    t_s: float
    classes: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Drained:
    """What there was to do at ``t_s``, to see how fast it is worked off."""

    t_s: float
    work_s: float
    arrived_s: float
    ready: int
    full: bool


@dataclass(frozen=True)
class PoolMemory:
    """What the policy remembers of a pool. It begins empty, after a restart too: then a pool is not
    made smaller until it was watched for as long as an idle replica is kept.

    ``watched_s`` is since when there have been samples; ``changed_s`` is when the last one came.
    ``wants``, ``needs``, ``loads`` and ``jobs`` are (when, how much) of what there was lately, as
    far as nothing later was more. ``up`` and ``down`` are when a move began and from where.
    ``starts`` are when the replicas were asked for that are not ready yet, the first one first;
    ``ready`` were so at the last decision.
    """

    watched_s: float
    sample: Sample | None = None
    changed_s: float | None = None
    arrivals: tuple[Arrival, ...] = ()
    wants: tuple[tuple[float, float], ...] = ()
    needs: tuple[tuple[float, float], ...] = ()
    loads: tuple[tuple[float, float], ...] = ()
    jobs: tuple[tuple[float, float], ...] = ()
    above_since_s: float | None = None
    spike_s: float | None = None
    up: tuple[float, int] | None = None
    down: tuple[float, int] | None = None
    ready: int = 0
    starts: tuple[float, ...] = ()
    cold_starts_s: tuple[float, ...] = ()
    drained: Drained | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Of all pools, by name."""

    pools: Mapping[str, PoolMemory] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The decisions by pool, and what to pass to the next one."""

    decisions: Mapping[str, Decision]
    memory: Memory
