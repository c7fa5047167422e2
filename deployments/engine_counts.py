"""What an engine did, in plain numbers: counted beside it, published by whoever knows how."""

from __future__ import annotations

from dataclasses import dataclass

from serving.engine import Denoised, Event, Saved, Stepped, Yielded
from serving.plan.catalog import BatchPolicy


@dataclass
class EngineCounts:
    """Sums since the worker began, and the jobs that are in the engine now.

    ``steps`` counts the steps of all jobs, ``forwards`` the forwards that made them, which took
    ``step_s`` together: one forward makes a step of each job it carries. ``rows`` counts the rows
    that were used in them, ``rows_capacity`` those that their buckets have. ``checkpoints`` are
    snapshots that the engine made.
    """

    steps: int = 0
    step_s: float = 0.0
    forwards: int = 0
    rows: int = 0
    rows_capacity: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    runs: int = 0

    def count(self, event: Event, tokens: int, batch: BatchPolicy) -> None:
        """An event of a run whose rows have so many latent ``tokens``."""
        match event:
            case Stepped():
                self.steps += 1
                if event.leads:
                    self.forwards += 1
                    self.step_s += event.step_s
                    self.rows += event.rows
                    self.rows_capacity += max(event.rows, batch.bucket(tokens, event.rows))
            case Saved() | Denoised() | Yielded() if event.snapshot is not None:
                self.checkpoints += 1
                self.checkpoint_bytes += event.snapshot.size_bytes
