"""What every replica does, whatever makes its jobs: lease, listen, announce itself, drain.

Runs on one event loop. It knows nothing of Ray, so a test can run it as it is against a real
Redis.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from deployments.leased_run import LeasedRun
from deployments.patience import until_answered
from deployments.scratch import remove_orphans
from serving.jobs import (
    Cell,
    Drop,
    JobSettings,
    Lease,
    Leases,
    ReplicaStatus,
    Room,
    Rows,
    Wake,
)
from serving.plan.classes import Offered
from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How often an idle worker leases when no wake message came: messages may be lost."""
LEFT_S = 0.5
"""When it asks again for what woke it: a job is left so long to a replica that would do better."""
ANNOUNCE_S = 2.0
BUSY_PAUSE_S = 0.05
"""Between two questions of a worker that runs something and got nothing."""

Run = TypeVar("Run", bound=LeasedRun)


class PoolWorker(ABC, Generic[Run]):
    """Serves the pool of ``model``: ``slots`` jobs at once, delivery of earlier ones beside.

    ``device`` is the class of device that it works on. ``start_s``: how long it took to get here,
    if a replica was started for it.
    """

    def __init__(
        self,
        model: Offered,
        slots: int,
        cell: Cell,
        replica: str,
        settings: JobSettings | None = None,
        *,
        device: str,
        start_s: float | None = None,
    ) -> None:
        self._slots = slots
        self._settings = settings or JobSettings()
        self._cell = cell
        self._leases = Leases(cell, model.id, replica, self._settings, model.classes)
        self._device = device
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken = 0
        self._born = time.monotonic() - (start_s or 0.0)
        self._start_ms = None if start_s is None else round(1000 * start_s)
        self._retired = False
        self._announcing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._announce_now = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._leasing_ended = asyncio.Event()

    @abstractmethod
    def check(self) -> None:
        """Raise if this process can no longer serve."""

    @property
    @abstractmethod
    def _closing(self) -> bool:
        """Whether it leases no more."""

    @abstractmethod
    def _lease_s(self) -> float:
        """How long a lease holds before it is known for what."""

    @abstractmethod
    def _shapes(self) -> Mapping[str, Rows]:
        """What may run beside what runs."""

    @abstractmethod
    def _run_of(self, lease: Lease) -> Run:
        """How a job is made here."""

    @abstractmethod
    def _drop(self, job_id: str, fence: int) -> None:
        """This run is no longer ours."""

    @abstractmethod
    async def _stop(self, deadline: float) -> None:
        """Hand every job back that has not left its slot; by the loop's clock."""

    def _beside(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What else it does for as long as it serves."""
        return ()

    async def _report(self) -> None:
        """Say what there is to say beside that it is there."""

    async def run(self) -> None:
        """Serve until cancelled. Redis may go away and come back meanwhile.

        Raises :class:`ConfigError` if what it holds is of another version.
        """
        try:
            await until_answered(self._cell.check_schema)
            await asyncio.to_thread(remove_orphans)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lease_forever())
                group.create_task(self._listen_forever())
                group.create_task(self._announce_forever())
                for work in self._beside():
                    group.create_task(work)
        finally:
            self._leasing_ended.set()

    async def drain(self, timeout_s: float) -> None:
        """Stop leasing, and say so; hand every job back, let deliveries finish."""
        deadline = self._loop.time() + timeout_s
        await self._stop(deadline)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - self._loop.time()))
        try:
            await self._report()
            await self._retire()
        except ServiceUnavailable as error:
            log.warning("cannot retire: %s", error)

    async def _lease_no_more(self, deadline: float) -> None:
        """Once it is closing: a lease under way may still bring a job."""
        self._wake.set()
        self._announce_now.set()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._leasing_ended.wait()

    async def _lease_forever(self) -> None:
        while not self._closing:
            await self._lease_or_wait()
        self._leasing_ended.set()

    async def _lease_or_wait(self) -> None:
        pause_s = LEFT_S if self._wake.is_set() else POLL_S
        self._wake.clear()
        # One delivery, or one run that is being stopped for another, may be beside full slots;
        # more deliveries would only pile up what they hold.
        room = self._free >= 0 and len(self._runs) <= self._slots
        lease = await self._lease() if room and not self._has_last_attempt else None
        if lease is not None:
            self._start(lease)
            return
        if self._runs:  # most jobs are of no use beside others: do not ask at every wake
            await asyncio.sleep(BUSY_PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()

    @property
    def _free(self) -> int:
        """Free slots; -1 while a run is being stopped for one that has its lease already."""
        return self._slots - self._taken

    @property
    def _has_last_attempt(self) -> bool:
        """Whether it runs a job that lost every replica before: nobody should be beside it."""
        last = self._settings.attempts_max
        return last > 1 and any(run.job.attempts >= last for run in self._runs.values())

    async def _lease(self) -> Lease | None:
        try:
            return await self._leases.lease(int(1000 * self._lease_s()), self._room())
        except ServiceUnavailable as error:
            log.warning("cannot lease: %s", error)
            return None

    def _room(self) -> Room:
        resident = [run.resident for run in self._runs.values()]
        return Room(
            free=self._free,
            runs=[each for each in resident if each],
            shapes=self._shapes(),
            delivering=sum(each is None for each in resident),
        )

    async def _listen_forever(self) -> None:
        while True:
            try:
                async with self._leases.signals() as signals:
                    while True:
                        match await signals.next(timeout_s=POLL_S):
                            case Drop(job_id, fence):
                                self._drop(job_id, fence)
                            case Wake() as wake if self._may_take(wake):
                                self._wake.set()
            except ServiceUnavailable as error:
                log.warning("cannot listen: %s", error)
                await asyncio.sleep(POLL_S)

    def _may_take(self, wake: Wake) -> bool:
        """Spares Redis the questions of full replicas that no job could enter."""
        quantum_s = self._settings.quantum_s
        return self._free > 0 or any(
            run.gives_way_to(wake.job, wake.now_ms, quantum_s) for run in self._runs.values()
        )

    async def _announce_forever(self) -> None:
        while not self._retired:
            self._announce_now.clear()
            try:
                await self._announce()
                await self._report()
            except ServiceUnavailable as error:
                log.warning("cannot announce: %s", error)
            # At once when a slot was taken or freed: others decide by it.
            with suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_S):
                    await self._announce_now.wait()

    async def _announce(self) -> None:
        async with self._announcing:
            if self._retired:
                return
            await self._leases.announce(
                host=socket.gethostname(),
                pid=os.getpid(),
                device=self._device,
                slots=self._slots,
                free=max(0, self._free),
                age_ms=int(1000 * (time.monotonic() - self._born)),
                state=ReplicaStatus.DRAINING if self._closing else None,
                start_ms=self._start_ms,
            )
            self._start_ms = None

    async def _retire(self) -> None:
        """The last word: whoever announced after it would come back."""
        async with self._announcing:
            self._retired = True
            await self._leases.retire()

    def _start(self, lease: Lease) -> None:
        if lease.preempts:
            job_id, fence = lease.preempts
            if victim := self._runs.get(f"{job_id}/{fence}"):
                victim.preempt()
        run = self._run_of(lease)
        self._runs[run.id] = run
        self._take(1)
        task = asyncio.create_task(self._serve(run), name=run.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self, slots: int) -> None:
        self._taken += slots
        self._announce_now.set()

    def _freed(self) -> None:
        """One has left its slot."""
        self._take(-1)
        self._wake.set()

    async def _serve(self, run: Run) -> None:
        await run.serve()
        del self._runs[run.id]
        self._wake.set()
