"""What other systems do, on our executor: their admission policies, as read in their code.

Emulations, not the engines: costs, stages and rows per forward are everyone's. Where a peer
leaves something to its operator, the choice is one that is good for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Sequence

from loadtest.policies.work import Job


class Waves(ABC):
    """Calls of a pipeline: jobs that begin together are handed out together, and nobody joins.

    A job that has done its steps leaves the forward, which is then cheaper.
    """

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self._wave: list[Job] = []

    @abstractmethod
    def form(self, now_s: float) -> list[Job]:
        """The next wave, taken out of ``waiting``; empty to go on waiting."""

    def arrive(self, job: Job) -> None:
        self.waiting.append(job)

    def choose(self, now_s: float) -> Sequence[Job]:
        self._wave = self._wave or self.form(now_s)
        for job in self._wave:
            if not job.begun:
                return [job]
        return [job for job in self._wave if job.step < job.steps]

    def wake_s(self, now_s: float) -> float:
        return math.inf

    def advanced(self, jobs: Sequence[Job], now_s: float) -> Sequence[Job]:
        if any(job.step < job.steps for job in self._wave):
            return []
        ended, self._wave = self._wave, []
        return ended


class Fifo(Waves):
    """One call at a time, in order of arrival: a replica with ``max_ongoing_requests=1``."""

    def form(self, now_s: float) -> list[Job]:
        return [self.waiting.popleft()] if self.waiting else []


class ServeBatch(Waves):
    """Ray Serve's ``@serve.batch``: ray-project/ray ``python/ray/serve/batching.py`` (2.60).

    ``_BatchQueue.wait_for_batch`` takes the first call and those that come within
    ``batch_wait_timeout_s`` of it, at most ``max_batch_size``; all are answered when the batched
    method returns. A forward has one shape, so each shape has a batched method of its own, and
    the device serves first the one whose oldest call came first. Serve closes a batch when its
    time is over even while an earlier one still runs; here it goes on filling until the device
    is free, which makes larger batches.
    """

    wait_s = 0.01
    """The default of ``batch_wait_timeout_s``."""

    def form(self, now_s: float) -> list[Job]:
        if not self.waiting or now_s < self.wake_s(now_s):
            return []
        batch = self._coming()
        for job in batch:
            self.waiting.remove(job)
        return batch

    def wake_s(self, now_s: float) -> float:
        if not self.waiting:
            return math.inf
        full = len(self._coming()) == self.waiting[0].kind.jobs_max
        return now_s if full else self.waiting[0].created_s + self.wait_s

    def _coming(self) -> list[Job]:
        kind = self.waiting[0].kind
        return [job for job in self.waiting if job.kind is kind][: kind.jobs_max]


class Triton(Waves):
    """Triton's dynamic batcher: triton-inference-server/core ``src/dynamic_batch_scheduler.cc``.

    ``GetDynamicBatch`` goes through the queue in order: another shape ends the batch and sends
    it, the largest preferred size that is reached is sent at once, and anything smaller waits
    until its oldest request is ``max_queue_delay`` old.
    """

    preferred = (4, 8)
    delay_s = 0.01

    def form(self, now_s: float) -> list[Job]:
        if not self.waiting or now_s < self.wake_s(now_s):
            return []
        return [self.waiting.popleft() for _ in range(self._size()[0])]

    def wake_s(self, now_s: float) -> float:
        if not self.waiting:
            return math.inf
        size, sent = self._size()
        return now_s if sent or size in self.preferred else self.waiting[0].created_s + self.delay_s

    def _size(self) -> tuple[int, bool]:
        """How many of the queue's head, and whether they cannot become more."""
        kind, count, sent = self.waiting[0].kind, 0, False
        for job in self.waiting:
            sent = job.kind is not kind or count == kind.jobs_max
            if sent:
                break
            count += 1
        if sent or count == kind.jobs_max:
            return count, True
        return max((size for size in self.preferred if size <= count), default=count), False


class Sglang(Waves):
    """SGLang's dynamic batching: sgl-project/sglang
    ``python/sglang/multimodal_gen/runtime/managers/scheduler.py`` (``get_next_batch_to_run``).

    The oldest request leads; of the whole queue, those join whose sampling parameters are all
    equal, seed and prompt aside: shape, guidance and the number of steps
    (``_build_dynamic_batch_signature``). ``batching_delay_ms`` is at its default, 0.
    """

    def form(self, now_s: float) -> list[Job]:
        if not self.waiting:
            return []
        lead = self.waiting[0]
        wave = [job for job in self.waiting if _signature(job) == _signature(lead)]
        wave = wave[: lead.kind.jobs_max]
        for job in wave:
            self.waiting.remove(job)
        return wave


def _signature(job: Job) -> Hashable:
    return job.kind.name, job.steps


class VllmOmni:
    """vLLM-Omni's step batching: vllm-project/vllm-omni
    ``vllm_omni/diffusion/sched/base_scheduler.py`` (``schedule``) and ``step_scheduler.py``.

    Every running request does one step at a time, and new ones join between steps, oldest
    first, up to ``max_num_seqs``: while the oldest has another key (shape, guidance) than those
    that run, it waits and everybody behind it (``_can_schedule_waiting``, then ``break``).
    Nobody is preempted. Requests may join at any step, as they may in the pipelines that allow
    mixed step phases.
    """

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []

    def arrive(self, job: Job) -> None:
        self.waiting.append(job)

    def choose(self, now_s: float) -> Sequence[Job]:
        while self.waiting and self._joins(self.waiting[0]):
            self.running.append(self.waiting.popleft())
        for job in self.running:
            if not job.begun:
                return [job]
        return self.running

    def _joins(self, job: Job) -> bool:
        if not self.running:
            return True
        kind = self.running[0].kind
        return job.kind is kind and len(self.running) < kind.jobs_max

    def wake_s(self, now_s: float) -> float:
        return math.inf

    def advanced(self, jobs: Sequence[Job], now_s: float) -> Sequence[Job]:
        ended = [job for job in jobs if job.step == job.steps]
        for job in ended:
            self.running.remove(job)
        return ended
