"""The same on the real engine: what its steps cost, and a run of it in real time.

The tiny Wan in this process, on one thread, so that the second core of a small machine is left
to whoever submits.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import Any, Protocol

import torch

from loadtest.errors import LoadTestError
from loadtest.policies.compare import POLICIES, on_time
from loadtest.policies.executor import Replica, simulate
from loadtest.policies.reelserve import Reelserve
from loadtest.policies.work import (
    KINDS,
    ROWS_PER_JOB,
    STEPS,
    Costs,
    Job,
    Kind,
    arrivals,
    rows_of,
)
from serving.engine import Began, Denoised, Engine, Event, Failed, Stepped
from serving.models.family import Family
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import BatchPolicy, CheckpointPolicy
from serving.plan.clip import ClipSpec
from serving.plan.rank import Contender

PROMPT_TOKENS = 64
ROUNDS = 5
DRAIN_S_MAX = 600.0
SILENCE_S_MAX = 60.0


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiny_wan() -> Family:
    """The demo model, in batches as the mix has them; a lone job does not pay for a full one."""
    rows_from_tokens = {_tokens(kind): ROWS_PER_JOB * kind.jobs_max for kind in KINDS}
    return WanFamily(
        tiny_pipeline(),
        device=torch.device("cpu"),
        prompt_tokens=PROMPT_TOKENS,
        batch=BatchPolicy(rows_from_tokens=rows_from_tokens, reproducible="fast"),
    )


def _tokens(kind: Kind) -> int:
    """Latent tokens: 4 frames and 16 x 16 pixels each."""
    frames = kind.seconds * kind.fps // 4 + 1
    return frames * (kind.width // 16) * (kind.height // 16)


def spec(kind: Kind, steps: int, seed: int) -> ClipSpec:
    """What such a job asks for."""
    return ClipSpec.model_validate(kind.spec(steps, seed))


def measure(progress: Callable[[str], None], rounds: int = ROUNDS) -> Costs:
    """Time the stages of every kind: the least of several tries, in CPU seconds of this process.

    On one thread these are seconds of an idle machine, whatever else runs on this one.
    """
    with one_thread():
        family = tiny_wan()
        encode_s, step_s = {}, {}
        for kind in KINDS:
            progress(f"measuring {kind.name}: {kind.width}x{kind.height}, {_tokens(kind)} tokens")
            encode_s[kind.name] = _encode_s(family, kind, rounds)
            step_s[kind.name] = {
                rows: _step_s(family, kind, rows, rounds) for rows in rows_of(kind)
            }
    return Costs(encode_s, step_s)


def _encode_s(family: Family, kind: Kind, rounds: int) -> float:
    return _least(lambda: family.begin(spec(kind, STEPS[0], seed=0)), rounds)


def _step_s(family: Family, kind: Kind, rows: int, rounds: int) -> float:
    runs = [family.begin(spec(kind, STEPS[0], seed)) for seed in range(rows // ROWS_PER_JOB)]
    return _least(lambda: family.step(runs), rounds)


def _least(work: Callable[[], object], rounds: int) -> float:
    tries = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        tries.append(time.process_time() - began)
    return min(tries)


class Leasing(Protocol):
    """Which jobs are with the engine."""

    def arrive(self, job: Job) -> None: ...

    def lease(self, now_s: float) -> Iterable[Job]:
        """The jobs that go to the engine now."""
        ...

    def advanced(self, jobs: Sequence[Job], now_s: float) -> Sequence[Job]: ...


class OneByOne:
    """FIFO for the real engine: the next call when the last one has ended."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None

    def arrive(self, job: Job) -> None:
        self._waiting.append(job)

    def lease(self, now_s: float) -> Iterable[Job]:
        if self._running is None and self._waiting:
            self._running = self._waiting.popleft()
            yield self._running

    def advanced(self, jobs: Sequence[Job], now_s: float) -> Sequence[Job]:
        ended = [job for job in jobs if job.step == job.steps]
        if ended:
            self._running = None
        return ended


def in_real_time(policy: Leasing, costs: Costs, jobs: Sequence[Job]) -> float:
    """Submit ``jobs`` at their times to the engine and note when each one's last step was done.

    Who is with the engine is the policy's choice, who steps is the engine's own. Returns how
    many times longer its steps took than ``costs`` have them: other work slows a machine down.
    """
    said: queue.Queue[tuple[float, Event]] = queue.Queue()
    with one_thread():
        engine = Engine(
            tiny_wan(),
            lambda event: said.put((time.monotonic(), event)),
            CheckpointPolicy(every_s=DRAIN_S_MAX),
        )
        engine.start()
        try:
            return _drive(engine, said, policy, costs, jobs)
        finally:
            engine.close(DRAIN_S_MAX)


def _drive(
    engine: Engine,
    said: queue.Queue[tuple[float, Event]],
    policy: Leasing,
    costs: Costs,
    jobs: Sequence[Job],
) -> float:
    began, arrived, ended = time.monotonic(), 0, 0
    # All that share a step tell the same seconds, to the last digit.
    forwards: dict[float, list[Kind]] = {}
    by_id = {str(job.index): job for job in jobs}
    while ended < len(jobs):
        now_s = time.monotonic() - began
        while arrived < len(jobs) and jobs[arrived].created_s <= now_s:
            policy.arrive(jobs[arrived])
            arrived += 1
        for job in policy.lease(now_s):
            contender = Contender(
                created_ms=round(1e3 * (began + job.created_s)),
                total_ms=round(1e3 * costs.solo_s(job.kind, job.steps)),
                remaining_ms=round(1e3 * costs.solo_s(job.kind, job.steps)),
            )
            clip = spec(job.kind, job.steps, job.index)
            engine.submit(str(job.index), clip, contender=contender)
        until_s = jobs[arrived].created_s - now_s if arrived < len(jobs) else SILENCE_S_MAX
        try:
            at, event = said.get(timeout=max(0.0, until_s))
        except queue.Empty:
            if arrived == len(jobs):
                raise LoadTestError(f"the engine said nothing for {SILENCE_S_MAX:g} s") from None
            continue
        job = by_id[event.run_id]
        match event:
            case Failed():
                raise LoadTestError(f"a clip failed: {event.error}") from event.error
            case Began():
                job.begun = True
            case Stepped():
                job.step = event.step
                forwards.setdefault(event.step_s, []).append(job.kind)
                for done in policy.advanced([job], at - began):
                    done.done_s = at - began
                    ended += 1
            case Denoised():
                engine.drop(event.run_id)
    expected_s = sum(costs.shared_step_s(kinds[0], len(kinds)) for kinds in forwards.values())
    return sum(forwards) / expected_s


def beside_real_time(
    costs: Costs, load: float, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The jobs of the first ``seconds``, on the engine in real time and simulated, by policy.

    The simulated steps are slowed down as much as the engine's were, and so is the solo time
    that counts for being on time; the policy knows nothing of it, on either side. Nothing is left
    out as warm-up: there are few jobs, and both sides begin idle.
    """
    most = max(100, int(10 * load * seconds / costs.mean_solo_s()))
    count = sum(job.created_s < seconds for job in arrivals(costs, load, most, seed=0))
    if not count:
        raise LoadTestError(f"no job arrives within {seconds:g} s; try a longer --real-time")
    found: dict[str, Any] = {}
    leasing: dict[str, Leasing] = {"reelserve": Reelserve(costs), "fifo": OneByOne()}
    for name, policy in leasing.items():
        progress(f"{name}: {count} jobs on the engine, in real time")
        real, expected = (arrivals(costs, load, count, seed=0) for _ in range(2))
        slowdown = in_real_time(policy, costs, real)
        slowed = costs.slowed(slowdown)
        simulate(POLICIES[name](costs), Replica(slowed), expected)
        found[name] = {
            "slowdown": round(slowdown, 3),
            "engine": _brief(real, slowed),
            "simulated": _brief(expected, slowed),
        }
    return {"seconds": seconds, "jobs": count, "policies": found}


def _brief(jobs: Sequence[Job], costs: Costs) -> dict[str, float]:
    return {
        "slo_attainment": round(mean(on_time(job, costs) for job in jobs), 4),
        "mean_s": round(mean(job.done_s - job.created_s for job in jobs), 3),
        **{
            f"{kind.name}_mean_s": round(mean(took), 3)
            for kind in KINDS
            if (took := [job.done_s - job.created_s for job in jobs if job.kind is kind])
        },
    }
