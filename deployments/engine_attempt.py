"""What an attempt on the engine tells of itself, by the engine's events."""

from __future__ import annotations

import time

from deployments.attempt import Attempt
from serving.engine import Began, Decoded, Denoised, Dropped, Event, Failed, Stepped, Yielded
from serving.jobs import Lease
from serving.tracing import Tracer


class EngineAttempt(Attempt):
    """Its stages are ``encode``, ``denoise``, ``decode`` and ``deliver``."""

    def __init__(self, lease: Lease, tracer: Tracer, step: int) -> None:
        super().__init__(lease, tracer, step)
        self._rows_max = 0

    def saw(self, event: Event) -> None:
        """The engine got this far with it, just now."""
        match event:
            case Began():
                self.got_to(event.step)
                self._encoded(event.encode_s)
                self.begins("denoise" if self._denoises else "decode")
                self._stage.set({"from_step": event.step})
            case Stepped():
                self.got_to(event.step)
                self._rows_max = max(self._rows_max, event.rows)
            case Denoised():
                self.begins("decode")
            case Decoded() | Yielded() | Dropped():
                self._close_stage()
            case Failed():
                self._close_stage(error=type(event.error).__name__)

    @property
    def _denoises(self) -> bool:
        return self._step < self._job.spec.steps

    def _encoded(self, encode_s: float) -> None:
        now_ms = 1000 * time.time()
        self._tracer.under(self._span, "encode", at_ms=now_ms - 1000 * encode_s).end(at_ms=now_ms)

    def _close_stage(self, error: str = "") -> None:
        if self._rows_max:  # it was denoising
            rows = {"rows": self._job.spec.rows, "forward_rows_max": self._rows_max}
            self._stage.set({"step": self._step, **rows})
            self._rows_max = 0
        super()._close_stage(error)
