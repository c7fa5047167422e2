"""What a replica's engine did, exported by Ray: it puts ``ray_`` before each name, and ``_total``
behind that of a counter. autoscale/rules/recording.yaml gives each one name over all replicas."""

from __future__ import annotations

import asyncio
from dataclasses import astuple

from ray.util.metrics import Counter, Gauge

from deployments.engine_counts import EngineCounts

PUBLISH_S = 1.0
"""Ray hands its figures on more seldom than that."""

COUNTERS = {
    "reelserve_engine_steps": "Denoising steps of all jobs.",
    "reelserve_engine_step_seconds": "What forwards took that made denoising steps.",
    "reelserve_engine_forwards": "Forwards that made a step of one job or of several.",
    "reelserve_engine_batch_rows": "Rows that were used in these forwards.",
    "reelserve_engine_batch_rows_capacity": "Rows that these forwards had.",
    "reelserve_engine_checkpoints": "Snapshots of latents that were made.",
    "reelserve_engine_checkpoint_bytes": "Size of these snapshots.",
}
"""In the order of the fields of :class:`EngineCounts`."""
GAUGE = ("reelserve_engine_runs", "Jobs that are in the engine.")
TAGS = ("model", "device")


class EngineMetrics:
    """Publishes the counts of one replica. Ray must run in this process."""

    def __init__(self, model: str, device: str) -> None:
        self._tags = {"model": model, "device": device}
        self._counters = [Counter(name, text, tag_keys=TAGS) for name, text in COUNTERS.items()]
        self._runs = Gauge(*GAUGE, tag_keys=TAGS)
        self._published: tuple[float, ...] = (0,) * len(COUNTERS)

    def publish(self, counts: EngineCounts) -> None:
        """What was counted since the last time; nothing more than adding up here, no call to Ray's
        other processes."""
        *sums, runs = astuple(counts)
        for counter, now, before in zip(self._counters, sums, self._published, strict=True):
            if now > before:
                counter.inc(now - before, tags=self._tags)
        self._published = tuple(sums)
        self._runs.set(runs, tags=self._tags)

    async def publish_forever(self, counts: EngineCounts) -> None:
        while True:
            self.publish(counts)
            await asyncio.sleep(PUBLISH_S)
