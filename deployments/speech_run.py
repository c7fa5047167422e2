"""One leased job that is spoken, a sentence at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

from deployments.attempt import Attempt
from deployments.leased_run import LeasedRun
from deployments.patience import end, until_answered
from deployments.speech_file import SpeechFile
from deployments.spoken import Spoken
from serving.jobs import Lease, Leases, Phase
from serving.media import ArtifactStore, StoreUnavailable
from serving.plan.errors import (
    CheckpointError,
    InvalidInput,
    InvalidRequest,
    ModelFailed,
    ModelServerBusy,
    ModelServerLost,
    ModelServerTimeout,
    ServiceUnavailable,
    StaleLease,
)
from serving.plan.speech import SILENT_S_MAX, Speaker
from serving.plan.speech_model import SpeechModel
from serving.tracing import NO_TRACER, Tracer

log = logging.getLogger(__name__)

BOUNDARY_S = 2.0
"""A sentence that is being said when the run is to stop may end within this; else it is said again
by whoever goes on."""
AWAY_PAUSE_S = 1.0
"""A job whose model server is away waits so long before it goes back, lest it is leased again and
again meanwhile."""


class SpeechRun(LeasedRun):
    """Has a speaker say the sentences, saves each before the next, and delivers the file.

    It stops between two sentences: for another job (:meth:`preempt`), since its replica leaves
    (:meth:`drains`), or since the job is no longer ours (:meth:`drop`). ``beside``: how many jobs
    the speaker is shared by, this one included.
    """

    postpones = (ModelServerLost, ModelServerBusy, ModelServerTimeout, StoreUnavailable)

    def __init__(
        self,
        lease: Lease,
        *,
        model: SpeechModel,
        speaker: Speaker,
        lease_s_min: float,
        leases: Leases,
        store: ArtifactStore,
        left_slot: Callable[[], None],
        beside: Callable[[], int],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        attempt = Attempt(lease, tracer, lease.job.checkpoint_step)
        super().__init__(lease, attempt, leases=leases, store=store, left_slot=left_slot)
        self._spec = self.job.speech
        self._model, self._speaker = model, speaker
        self._lease_s_min = lease_s_min
        self._beside = beside
        self._pointed = self._step
        self._spoken = Spoken(store, self.job, model, speaker)
        self._stopping = asyncio.Event()
        self._dropped = False
        self._waits_since: float | None = None

    @property
    def lease_s(self) -> float:
        return self._lease_s_min

    @property
    def silent_s(self) -> float:
        """For how long the speaker has been making one sentence."""
        return 0.0 if self._waits_since is None else time.monotonic() - self._waits_since

    def preempt(self) -> None:
        self._preempted = True
        self._stopping.set()

    def drains(self) -> None:
        """Its replica leaves: the job goes back to the queue."""
        self._attempt.drains(self._step)
        self._stopping.set()

    def drop(self) -> None:
        """The job is no longer ours."""
        self._dropped = True
        self._stopping.set()

    @property
    def _switch_ms(self) -> int:
        # What was spoken is only read and encoded again.
        return round(1000 * self._model.cost.begin_s)

    def _left_share(self, step: int) -> float:
        return self._spec.left_share(step)

    @property
    def _remaining_ms(self) -> int:
        # By how fast it has been so far, turns of others included.
        left_share = self._left_share(self._step)
        done_share = self._left_share(self.job.checkpoint_step) - left_share
        if done_share <= 0:
            return self._left_ms
        ran_s = time.monotonic() - self._began
        return max(1, round(1000 * ran_s / done_share * left_share))

    async def _make_and_store(self) -> dict[str, Any] | None:
        try:
            with SpeechFile(self._spec, self._speaker) as file:
                if not await self._speak(file):
                    return None
                self._release()
                self._attempt.begins("deliver")
                began = time.perf_counter()
                upload = partial(file.upload, self._store, self.id)
                result = dict(await self._patiently(upload, Phase.STORE))
                self._stages["store_s"] = time.perf_counter() - began
                return result
        except InvalidRequest as error:  # a voice that there was when it was accepted
            raise InvalidInput(error.message, param=error.param) from error
        except self.postpones:
            await self._point_at_last()
            await asyncio.sleep(AWAY_PAUSE_S)
            raise

    async def _speak(self, file: SpeechFile) -> bool:
        """Every sentence, from where the last attempt left off; False if it was stopped."""
        await self._heartbeat(Phase.SPEAK)  # the lease was granted before it was known for what
        await self._resume(file)
        self._attempt.begins("speak")
        began = time.perf_counter()
        rest = self._spec.sentences[self._step :]
        spec = self._spec
        saying = self._speaker.speak(rest, spec.voice, spec.speed, spec.instructions)
        try:
            for _ in rest:
                pcm = None if self._stopping.is_set() else await self._next(saying)
                if self._dropped:
                    raise StaleLease(self.id)
                if pcm is None:
                    await self._point_at_last()
                    return False
                await self._save(pcm)
                await file.write(pcm)
                if self._step == 1:  # when it came is measured
                    await self._heartbeat(Phase.SPEAK)
                await self._heartbeat_if_due(Phase.SPEAK)
        finally:
            if isinstance(saying, AsyncGenerator):
                await saying.aclose()
        self._stages["speak_s"] = time.perf_counter() - began
        return True

    async def _next(self, saying: AsyncIterator[bytes]) -> bytes | None:
        """The next sentence; None if the run is to stop, and it did not come soon enough.

        The lease is kept for as long as the speaker may take, which tries again by itself where its
        server is away. One that hangs loses the job.
        """

        async def say() -> bytes | None:
            return await anext(saying, None)

        self._waits_since = began = time.monotonic()
        sentence = asyncio.create_task(say(), name="sentence")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            while not sentence.done() and not stopping.done():
                await asyncio.wait(
                    {sentence, stopping},
                    timeout=self.lease_s / 4,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not sentence.done() and self.silent_s < SILENT_S_MAX:
                    await self._heartbeat(Phase.SPEAK)
            await asyncio.wait({sentence}, timeout=BOUNDARY_S)
            if not sentence.done():
                return None
            if (pcm := sentence.result()) is None:
                raise ModelFailed(
                    f"The speech model said {self._step} of {self._spec.steps} sentences."
                )
            return pcm
        finally:
            self._waits_since = None
            self._spent_s += (time.monotonic() - began) / max(1, self._beside())
            await end(stopping, *(() if sentence.done() else (sentence,)))

    # What is said stays said.

    async def _save(self, pcm: bytes) -> None:
        """Before the next one is asked for. When Redis is away, the job points at it with a later
        one, or when it goes back; so it does when the store is away."""
        await self._spoken.put(self._step, pcm)
        self._step += 1
        self._attempt.got_to(self._step)
        try:
            await self._point()
        except ServiceUnavailable as error:
            log.warning("%s: sentence %d is not saved yet: %s", self.id, self._step, error)

    async def _point(self) -> None:
        left_ms = self._left_after(self._step)
        await self._leases.checkpoint(self.job, self._spoken.folder, self._step, left_ms)
        self._pointed = self._step

    async def _point_at_last(self) -> None:
        """The job goes back to where it points, so this is waited for."""
        if self._pointed < self._step:
            await until_answered(self._point)

    async def _resume(self, file: SpeechFile) -> None:
        """Take what an earlier attempt has said, as far as that can be trusted."""
        saved, self._step = self._step, 0
        if not self.job.checkpoint:
            return
        try:
            self._spoken.check()
            async for pcm in self._spoken.first(saved):
                await file.write(pcm)
                self._step += 1
                await self._heartbeat_if_due(Phase.SPEAK)
        except CheckpointError as error:
            log.warning("%s goes on at sentence %d: %s", self.id, self._step, error)
            self._pointed = 0
            await until_answered(partial(self._leases.refused, self.job, error))
        else:
            await until_answered(partial(self._leases.resumed, self.job))
        self._attempt.got_to(self._step)
