"""The worker inside a replica that speaks: runs the jobs of its pool through a speaker.

:mod:`deployments.speech_replica` is the thin shell that Ray Serve sees.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping

from deployments.pool_worker import PoolWorker
from deployments.speech_run import SpeechRun
from serving.jobs import Cell, JobSettings, Lease, Rows
from serving.media import ArtifactStore
from serving.plan.speech import SILENT_S_MAX, Speaker
from serving.plan.speech_model import SpeechModel
from serving.tracing import NO_TRACER, Tracer

log = logging.getLogger(__name__)

DRAIN_S = 20.0
"""A sentence, or what is waited for one, and the delivery of a file that is encoded already."""


class SpeechWorker(PoolWorker[SpeechRun]):
    """One speaker. Its jobs take turns, a sentence each, or are batched where it speaks through a
    model server."""

    def __init__(
        self,
        model: SpeechModel,
        speaker: Speaker,
        cell: Cell,
        store: ArtifactStore,
        replica: str,
        settings: JobSettings | None = None,
        tracer: Tracer = NO_TRACER,
        *,
        start_s: float | None = None,
    ) -> None:
        slots, device = model.placement.slots, f"cpu {platform.machine()}"
        super().__init__(model, slots, cell, replica, settings, device=device, start_s=start_s)
        self._model, self._speaker = model, speaker
        self._store, self._tracer = store, tracer
        self._closed = False

    def check(self) -> None:
        """Raise if the speaker hangs in a sentence: by then the job's lease has lapsed."""
        silent_s = max((run.silent_s for run in self._runs.values()), default=0.0)
        if silent_s > SILENT_S_MAX + self._lease_s():
            raise RuntimeError(f"the speaker hangs: no sentence for {silent_s:.0f} s")

    @property
    def _closing(self) -> bool:
        return self._closed

    async def _stop(self, deadline: float) -> None:
        self._closed = True
        log.info("drains, with %d jobs that are spoken", self._taken)
        for run in self._runs.values():
            run.drains()
        await self._lease_no_more(deadline)

    def _drop(self, job_id: str, fence: int) -> None:
        if run := self._runs.get(f"{job_id}/{fence}"):
            run.drop()

    def _lease_s(self) -> float:
        return self._settings.lease_s_min

    def _shapes(self) -> Mapping[str, Rows]:
        """Another one costs those that run no more than their turns."""
        return {run.job.spec.shape: Rows(self._slots, self._slots) for run in self._runs.values()}

    def _run_of(self, lease: Lease) -> SpeechRun:
        run = SpeechRun(
            lease,
            model=self._model,
            speaker=self._speaker,
            lease_s_min=self._lease_s(),
            leases=self._leases,
            store=self._store,
            left_slot=self._freed,
            beside=lambda: self._taken,
            tracer=self._tracer,
        )
        if self._closed:  # it was on its way when the replica began to leave
            run.drains()
        return run
