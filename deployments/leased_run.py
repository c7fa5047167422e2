"""One leased job, from its lease to its end, whatever makes what it asks for."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

from deployments.attempt import Attempt, Outcome
from deployments.patience import until_answered
from serving.jobs import Lease, Leases, Phase, Resident
from serving.media import ArtifactStore, EncodeError, StoreError, StoreUnavailable
from serving.plan.errors import (
    DeliveryFailed,
    GenerationError,
    ModelFailed,
    ServiceUnavailable,
    StaleLease,
)
from serving.plan.rank import Contender, worth_preempting

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
"""Progress is written at most this often; steps may take a millisecond."""
STORE_PATIENCE_S = 120.0
STORE_PAUSE_S = 1.0

T = TypeVar("T")


class LeasedRun(ABC):
    """Makes one job and delivers it, under the lease of this attempt. ``left_slot`` is called once,
    when what remains is delivery and needs no slot of the replica."""

    postpones: ClassVar[tuple[type[Exception], ...]] = (StoreUnavailable,)
    """After these the job goes back to the queue, and whoever takes it next goes on from what is
    saved."""

    def __init__(
        self,
        lease: Lease,
        attempt: Attempt,
        *,
        leases: Leases,
        store: ArtifactStore,
        left_slot: Callable[[], None],
    ) -> None:
        self.job = lease.job
        self._attempt = attempt
        self._began = time.monotonic()
        self._created_s = self._began - lease.waited_ms / 1000
        self._leases = leases
        self._store = store
        self._left_slot = left_slot
        self._stages: dict[str, float] = {}
        self._heartbeat_at = 0.0
        self._phase = Phase.ENCODE
        self._released = False
        self._preempted = False
        self._holding = False
        self._step = self.job.checkpoint_step
        self._spent_s = 0.0

    @property
    def id(self) -> str:
        """Names this attempt: the fence sets it apart from an earlier one still winding down."""
        return f"{self.job.id}/{self.job.fence}"

    @property
    @abstractmethod
    def lease_s(self) -> float:
        """How long the run may go without progress."""

    @abstractmethod
    def preempt(self) -> None:
        """Stop at the next boundary and go back to the queue, for a job that goes first."""

    @abstractmethod
    async def _make_and_store(self) -> dict[str, Any] | None:
        """What the job's result records; None if the run yielded."""

    @property
    @abstractmethod
    def _remaining_ms(self) -> int:
        """Until it is stored."""

    @abstractmethod
    def _left_share(self, step: int) -> float:
        """The part of the device's work that ``step`` done steps leave."""

    @property
    @abstractmethod
    def _switch_ms(self) -> int:
        """Device time it costs to go on elsewhere."""

    # Its place among others.

    @property
    def resident(self) -> Resident | None:
        """What the next lease must know of it; None once it has left its slot."""
        if self._released:
            return None
        return Resident(
            self.job.id, self.job.fence, self._left_ms, self._switch_ms, denoises=self.denoises
        )

    @property
    def denoises(self) -> bool:
        """Whether it has steps left."""
        return not self._released and self._step < self.job.spec.steps

    def gives_way_to(self, other: Contender, now_ms: int, quantum_s: float) -> bool:
        """Whether it is worth asking to run ``other`` in its place; times are Redis's."""
        left_ms = self._left_ms
        return self.denoises and worth_preempting(
            other,
            Contender(self.job.created_ms, self.job.est_device_ms, left_ms, self.job.seat),
            now_ms,
            free_ms=left_ms,
            ran_ms=1000 * (time.monotonic() - self._began),
            preemptions=self.job.preempted,
            quantum_ms=1000 * quantum_s,
            cost_ms=self._switch_ms,
        )

    @property
    def _left_ms(self) -> int:
        """Of the estimate, so that a job that shares its steps does not seem a longer one."""
        return self._left_after(self._step)

    def _left_after(self, step: int) -> int:
        return max(1, round(self.job.est_device_ms * self._left_share(step)))

    def _release(self) -> None:
        """However it came to this, it needs its slot no more."""
        if not self._released:
            self._released = True
            self._left_slot()

    # From the lease to the end.

    async def serve(self) -> None:
        """Run the job to its end and record how it ended. Never raises."""
        with self._attempt:
            await self._serve()

    async def _serve(self) -> None:
        try:
            self._attempt.ended(await self._generate())
        except StaleLease:
            self._attempt.ended(Outcome.STALE)
            log.info("%s is no longer ours", self.id)
            await self._discard()
        except GenerationError as error:
            log.warning("%s failed: %s", self.id, error)
            await self._fail(error)
        except Exception as error:
            # A defect of ours: the job fails alone, and says so, rather than hang.
            log.exception("%s failed unexpectedly", self.id)
            await self._fail(ModelFailed(f"Unexpected {type(error).__name__}."))

    async def _generate(self) -> Outcome:
        """From the lease to the stored result, or to the job's return to the queue."""
        try:
            result = await self._make_and_store()
        except self.postpones as error:
            log.warning("%s goes back: %s", self.id, error or type(error).__name__)
            result = None
        except (EncodeError, StoreError, OSError) as error:
            raise DeliveryFailed(
                "What was made could not be encoded or stored. Submit it again; if it happens "
                "again, tell the operator."
            ) from error
        finally:
            self._release()
        if result is None:
            await until_answered(
                lambda: self._leases.give_back(
                    self.job, holding=self._holding, spent_ms=self._spent_ms, step=self._step
                )
            )
            return Outcome.PREEMPTED if self._preempted else Outcome.YIELDED
        result["stages"] = self._stages
        complete = partial(self._leases.complete, self.job, result, spent_ms=self._spent_ms)
        await until_answered(complete)
        try:
            await self._remove_leftovers()
        except Exception:
            log.exception("%s: leftovers stay until the job is forgotten", self.id)
        return Outcome.COMPLETED

    async def _patiently(self, use: Callable[[], Awaitable[T]], phase: Phase) -> T:
        """Use the store; one that is away is asked again for a while, and the lease is kept."""
        deadline = time.monotonic() + STORE_PATIENCE_S
        while True:
            await self._heartbeat(phase)
            try:
                return await use()
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("%s: the store is away: %s", self.id, error)
                await asyncio.sleep(min(STORE_PAUSE_S, self.lease_s / 4))

    # Progress.

    @property
    def _spent_ms(self) -> int:
        """Device time of this lease: of what it shared, its share."""
        return round(1000 * self._spent_s)

    async def _heartbeat_if_due(self, phase: Phase) -> None:
        if time.monotonic() - self._heartbeat_at >= HEARTBEAT_S:
            await self._heartbeat(phase)

    async def _heartbeat(self, phase: Phase) -> None:
        """Renew the lease because the run got further. A Redis that is away stops nothing."""
        self._phase = phase
        try:
            await self._leases.heartbeat(
                self.job,
                lease_ms=int(1000 * self.lease_s),
                phase=phase,
                step=self._step,
                remaining_ms=self._remaining_ms,
                spent_ms=self._spent_ms,
            )
        except ServiceUnavailable as error:
            log.warning("%s: heartbeat: %s", self.id, error)
        self._heartbeat_at = time.monotonic()

    # Endings.

    async def _fail(self, error: GenerationError) -> None:
        try:
            fail = partial(self._leases.fail, self.job, error, spent_ms=self._spent_ms)
            await until_answered(fail)
        except StaleLease:
            # Perhaps by our own completion: then the files are the clip.
            log.warning("%s failed after it was no longer ours: %s", self.id, error)
            self._attempt.ended(Outcome.STALE)
            return
        self._attempt.ended(Outcome.FAILED, error.code)
        await self._discard()

    async def _discard(self) -> None:
        """Remove the files this attempt may have stored: no job refers to them."""
        try:
            await self._store.delete_prefix(self.id)
        except StoreError as error:
            log.warning("%s: could not discard files: %s", self.id, error)

    async def _remove_leftovers(self) -> None:
        """Once the result is stored: checkpoints, previews, what earlier attempts may have left."""
        async for info in self._store.list(self.job.id):
            if not info.key.startswith(f"{self.id}/"):
                await self._store.delete(info.key)
