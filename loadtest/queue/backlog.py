"""`reelserve bench queue`: leases from a long queue of many tenants, and what a job takes in it."""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.queue.calls import POOL, Submission, Submit, specification
from loadtest.queue.wire import Pause, WireCell, ask, command, connect, drive, info, send
from loadtest.summary import judged, spread_ms
from serving.jobs import CELL, Job, JobSettings, Leases, Limits, Phase, Resident, Room, Rows
from serving.plan.classes import ServiceClass

AT_MOST = {"lease_p99_ms": 2.0, "bytes_per_job": 1500.0}
JOBS, TENANTS = 1_000_000, 10_000
JOBS_QUICK, TENANTS_QUICK = 20_000, 500
BATCH = 200
SIZES = ((832, 480), (480, 832), (624, 624))
LEASE_MS = 60_000
HEARTBEATS = 8
"""For each that a job makes here it makes a dozen or more in production, one in 0.25 s."""
SLOTS = 4
EXPIRED_S_MAX = 60.0
REWRITE_S_MAX = 600.0
SETTLE_S = 5.0
"""After a rewrite Redis deletes the old log, gigabytes of it, and the disk does little else."""
FLEET_CONNECTIONS = 16
"""That share the calls of a fleet: enough that a call rarely waits to be sent."""


@dataclass(frozen=True)
class Tier:
    """What tenants of one kind are: one in ``share`` of ten, with jobs of this class."""

    name: str
    share: int
    service_class: ServiceClass
    weight: int
    running_jobs: int


TIERS = (
    Tier("paid", 1, ServiceClass.BURST, weight=4, running_jobs=8),
    Tier("free", 6, ServiceClass.STANDARD, weight=1, running_jobs=2),
    Tier("over", 3, ServiceClass.RELAXED, weight=1, running_jobs=2),
)


@dataclass(frozen=True)
class Plan:
    """``jobs`` that wait, of so many ``tenants``. ``fleet`` of them are run at the pace of
    ``fleet_replicas`` whose jobs take ``job_s``; then so many ``replicas`` that never pause run
    ``cycles`` of them each, and while Redis rewrites its log ``rewriting``, and one alone runs
    ``alone``."""

    jobs: int = JOBS
    tenants: int = TENANTS
    fleet: int = 1600
    fleet_replicas: int = 200
    job_s: float = 5.0
    replicas: int = 4
    cycles: int = 2000
    rewriting: int = 1000
    settle_s: float = SETTLE_S
    alone: int = 500

    @classmethod
    def quick(cls) -> Plan:
        return cls(
            JOBS_QUICK, TENANTS_QUICK, fleet=160, cycles=200, rewriting=20, settle_s=0, alone=50
        )


def bench_queue(url: str, plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every figure, on an empty Redis. :class:`LoadTestError` when a call is refused.

    A replica leases jobs while it has slots, says for each how far it is, and ends the oldest; for
    each that ends another is submitted. A fleet does so at random times, as often as its jobs end.
    A few that never pause keep Redis as busy as it can be: any call waits for those of the others.
    None of that is while Redis rewrites its log, as it does whenever that has doubled; once more it
    is, and that is a figure of its own.

    A call takes from when it is sent until its answer arrived, by the kernel's clock. A replica is
    a process of its own, and reads it then; here one process plays all of them, and ``unread``
    says for how long answers lay there while it computed for another.
    """
    with closing(_Bench(url, plan)) as bench:
        bench.fill(tell)
        bytes_per_job = bench.bytes_per_job()
        tell(
            f"{plan.jobs:,} jobs wait, {bytes_per_job:,.0f} bytes each; "
            f"now {plan.fleet_replicas:,} replicas lease them"
        )
        bench.rewrite()
        fleet, fleet_evalsha = bench.fleet()
        tell(f"{len(fleet['lease']):,} leases; now by {plan.replicas} that never pause")
        together, unread_ms, evalsha = bench.together()
        tell(f"{len(together['lease']):,} leases by {plan.replicas} replicas; now during a rewrite")
        rewriting, rewrite_s = bench.together_while_rewriting()
        tell(f"{len(rewriting['lease']):,} leases beside a rewrite of {rewrite_s} s; now by one")
        alone, in_redis_us = bench.alone()
    lease = spread_ms(together["lease"])
    value: dict[str, Any] = {
        "jobs": plan.jobs,
        "tenants": plan.tenants,
        "lease_p50_ms": lease["p50_ms"],
        "lease_p99_ms": lease["p99_ms"],
        "lease_max_ms": lease["max_ms"],
        "fleet_lease_p99_ms": spread_ms(fleet["lease"])["p99_ms"],
        "rewriting_lease_p99_ms": spread_ms(rewriting["lease"])["p99_ms"],
        "bytes_per_job": round(bytes_per_job),
        "fleet": {name: _calls(found) for name, found in fleet.items()},
        "fleet_evalsha": fleet_evalsha,
        "together": {name: _calls(found) for name, found in together.items()},
        "rewriting": {name: _calls(found) for name, found in rewriting.items()},
        "rewrite_s": rewrite_s,
        "unread": _calls(unread_ms),
        "evalsha": evalsha,
        "alone": {
            name: {
                **_calls(alone[name]),
                "redis_p50_ms": round(statistics.median(used_us) / 1000, 3),
                "redis_share": round(sum(used_us) / sum(alone[name]) / 1000, 3),
            }
            for name, used_us in in_redis_us.items()
        },
        "mode": {
            "fleet_replicas": plan.fleet_replicas,
            "job_s": plan.job_s,
            "replicas": plan.replicas,
            "slots": SLOTS,
            "heartbeats_per_job": HEARTBEATS,
        },
    }
    value["targets"] = judged(value, at_most=AT_MOST)
    return value


def _calls(latencies_ms: Sequence[float]) -> dict[str, float]:
    return {"calls": len(latencies_ms), **spread_ms(latencies_ms)}


class MeasuringCell(WireCell):
    """Also keeps what each call took inside Redis, by its own account."""

    def __init__(self, name: str, control: socket.socket) -> None:
        super().__init__(name)
        self._control = control
        self.in_redis_us: defaultdict[str, list[float]] = defaultdict(list)

    async def run(self, script: str, *args: str | int) -> Any:
        before_us = evalsha_us(self._control)[1]
        value = await super().run(script, *args)
        self.in_redis_us[script].append(evalsha_us(self._control)[1] - before_us)
        return value


def evalsha_us(control: socket.socket) -> tuple[int, int]:
    """How many scripts ran, and the microseconds they took in all."""
    stats = info(control, "commandstats").get("cmdstat_evalsha", "calls=0,usec=0")
    fields = dict(field.split("=") for field in stats.split(","))
    return int(fields["calls"]), int(fields["usec"])


class _Bench:
    """One cell with its tenants, and the load on it."""

    def __init__(self, url: str, plan: Plan) -> None:
        self._url, self._plan = url, plan
        self._draw = random.Random(0)  # noqa: S311
        self._control = connect(url)
        self._cell = WireCell(CELL)
        self._cell.load(self._control)
        self._users = [f"user{number}" for number in range(plan.tenants)]
        tiers = [tier for tier in TIERS for _ in range(tier.share)]
        self._tiers = [tiers[number % len(tiers)] for number in range(plan.tenants)]
        self._submit = {
            (tier, size): Submit(
                self._cell, _limits(tier), specification(*size), keyed=False, retry_window_s=1
            )
            for tier in TIERS
            for size in SIZES
        }
        self._register()
        self._used_bytes = self._memory()

    def _register(self) -> None:
        """Tiers and users, as the ingress and the admin write them."""
        key, fields = self._cell.key, ["default", "free"]
        for tier in TIERS:
            fields += [f"{tier.name}:weight", str(tier.weight)]
            fields += [f"{tier.name}:running_jobs", str(tier.running_jobs)]
        ask(self._control, "HSET", key("tiers"), *fields)
        for user, tier in zip(self._users, self._tiers, strict=True):
            ask(self._control, "HSET", key("user", user), "tier", tier.name, "created_at", "0")

    def close(self) -> None:
        self._control.close()

    def _memory(self) -> int:
        return int(info(self._control, "memory")["used_memory"])

    def _submissions(self) -> Iterator[bytes]:
        """New jobs without end, each of any tenant."""
        while True:
            number = self._draw.randrange(self._plan.tenants)
            submit = self._submit[self._tiers[number], self._draw.choice(SIZES)]
            yield submit.encoded(Submission.drawn(self._draw, self._users[number]))

    def fill(self, tell: Callable[[str], None]) -> None:
        """Submit all jobs, so many in one go."""
        began, done, submissions = time.monotonic(), 0, self._submissions()
        tenth = -(-self._plan.jobs // 10)
        while done < self._plan.jobs:
            count = min(BATCH, self._plan.jobs - done)
            self._control.sendall(b"".join(next(submissions) for _ in range(count)))
            # One more answer, of which we know the end.
            self._control.sendall(command("ECHO", "all answered"))
            tail = b""
            while not tail.endswith(b"\r\nall answered\r\n"):
                tail = tail[-32:] + self._control.recv(1 << 20)
            if done // tenth < (done + count) // tenth:
                rate = (done + count) / (time.monotonic() - began)
                tell(f"{done + count:,} of {self._plan.jobs:,} jobs wait, {rate:,.0f} a second")
            done += count
        queued = ask(self._control, "ZCARD", self._cell.key("queued", POOL))
        if queued != self._plan.jobs:
            raise LoadTestError(f"{queued:,} of {self._plan.jobs:,} submissions were accepted")

    def bytes_per_job(self) -> float:
        """What Redis uses more than before, per job, once what lasts seconds is gone."""
        deadline = time.monotonic() + EXPIRED_S_MAX
        while time.monotonic() < deadline:
            keyspace = info(self._control, "keyspace")["db0"]
            volatile = int(dict(field.split("=") for field in keyspace.split(","))["expires"])
            rewrites = info(self._control, "persistence")["aof_rewrite_in_progress"]
            # A user has a rate and a day's allowance.
            if volatile <= 2 * self._plan.tenants and rewrites == "0":
                return (self._memory() - self._used_bytes) / self._plan.jobs
            time.sleep(0.2)
        raise LoadTestError(f"{volatile:,} keys that should expire within seconds did not")

    def rewrite(self) -> None:
        """Let Redis write its log anew. The next time it does so by itself is far off then."""
        ask(self._control, "BGREWRITEAOF")
        self._wait_until_rewritten()
        time.sleep(self._plan.settle_s)

    def _wait_until_rewritten(self) -> int:
        """How many seconds the last rewrite took."""
        deadline = time.monotonic() + REWRITE_S_MAX
        while time.monotonic() < deadline:
            state = info(self._control, "persistence")
            if state["aof_rewrite_in_progress"] == state["aof_rewrite_scheduled"] == "0":
                if state["aof_last_bgrewrite_status"] != "ok":
                    raise LoadTestError("Redis could not rewrite its log; is the disk full?")
                return int(state["aof_last_rewrite_time_sec"])
            time.sleep(0.1)
        raise LoadTestError(f"Redis did not rewrite its log within {REWRITE_S_MAX:.0f} s")

    def fleet(self) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Every call's milliseconds by script at the pace of a fleet; what Redis says of it."""
        plan = self._plan
        # Each job ends with three calls and says so often how far it is.
        calls_per_s = (HEARTBEATS + 3) * plan.fleet_replicas / plan.job_s
        took, _, evalsha = self._driven(
            FLEET_CONNECTIONS, plan.fleet // FLEET_CONNECTIONS, FLEET_CONNECTIONS / calls_per_s
        )
        return took, evalsha

    def together(self) -> tuple[dict[str, list[float]], list[float], dict[str, float]]:
        """The same of replicas that never pause; for how long each answer then lay unread."""
        return self._driven(self._plan.replicas, self._plan.cycles, 0.0)

    def together_while_rewriting(self) -> tuple[dict[str, list[float]], int]:
        """Their calls from when Redis began to write its log anew, and how many seconds it did."""
        ask(self._control, "BGREWRITEAOF")
        took, _, _ = self._driven(self._plan.replicas, self._plan.rewriting, 0.0)
        rewrite_s = self._wait_until_rewritten()
        time.sleep(self._plan.settle_s)
        return took, rewrite_s

    def _driven(
        self, replicas: int, cycles: int, pause_s: float
    ) -> tuple[dict[str, list[float]], list[float], dict[str, float]]:
        connections = [connect(self._url) for _ in range(replicas)]
        self._cell.took_s.clear()
        calls, used_us = evalsha_us(self._control)
        unread_s: list[float] = []
        took_s = drive(
            connections,
            [
                self._replica(self._cell, f"replica{number}", cycles, pause_s)
                for number in range(replicas)
            ],
            unread_s,
        )
        calls, used_us = (
            after - before
            for after, before in zip(evalsha_us(self._control), (calls, used_us), strict=True)
        )
        for each in connections:
            each.close()
        return (
            _ms(self._cell),
            [1000 * each_s for each_s in unread_s],
            {
                "calls": calls,
                "per_s": round(calls / took_s),
                "us_per_call": round(used_us / calls, 1),
                "busy_share": round(used_us / 1e6 / took_s, 3),
            },
        )

    def alone(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """The same of one replica, and the microseconds that Redis says it took of them."""
        cell, connection = MeasuringCell(CELL, self._control), connect(self._url)
        drive([connection], [self._replica(cell, "lone", self._plan.alone)], [])
        connection.close()
        return _ms(cell), cell.in_redis_us

    async def _replica(self, cell: WireCell, name: str, cycles: int, pause_s: float = 0.0) -> None:
        """``pause_s``: mean of what lies before a call, at random."""

        async def rest() -> None:
            if pause_s:
                await Pause(self._draw.expovariate(1 / pause_s))

        leases = Leases(cell, POOL, name, JobSettings())
        submissions = self._submissions()
        held: list[Job] = []
        for _ in range(cycles):
            while len(held) < SLOTS:
                await rest()
                lease = await leases.lease(LEASE_MS, _room(held))
                if lease is None:
                    break
                held.append(lease.job)
            for job in held:
                for step in range(HEARTBEATS // SLOTS):
                    await rest()
                    await leases.heartbeat(
                        job,
                        lease_ms=LEASE_MS,
                        phase=Phase.DENOISE,
                        step=step,
                        remaining_ms=job.left_device_ms // 2,
                        spent_ms=job.est_device_ms // 2,
                    )
            if held:
                await rest()
                await leases.complete(held.pop(0), {"file": "clip.mp4", "bytes": 1_000_000})
                await rest()
                await send(iter([next(submissions)]), cell.took_s["submit"])
        for job in held:
            await leases.give_back(job)


def _ms(cell: WireCell) -> dict[str, list[float]]:
    return {name: [1000 * each_s for each_s in took_s] for name, took_s in cell.took_s.items()}


def _room(held: Sequence[Job]) -> Room:
    return Room(
        free=SLOTS - len(held),
        runs=[
            Resident(job.id, job.fence, job.left_device_ms, switch_ms=500, denoises=True)
            for job in held
        ],
        shapes={specification(*size).shape: Rows(cheap=4, most=8) for size in SIZES},
    )


def _limits(tier: Tier) -> Limits:
    return Limits(tier.name, inside=tier.service_class, queued_jobs=1_000_000)
