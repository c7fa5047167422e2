"""Makes worker processes quickly: imports once, then forks one for each line it reads.

A line is JSON: ``redis_url``, ``store_url``, ``models_dir``, ``replica`` and ``faults``, which
says where the worker harms itself: ``{"kill": "step:3"}`` sends it SIGKILL once three steps are
done, ``"poison"`` at a step of a batch with that prompt, ``"decode"`` at its first decoded chunk,
``"store"`` before its upload, ``"swap"`` before it stops a run for another, ``"pause_s"`` later
than that; ``"step_s"`` makes every step slower by so much. It answers with the pid.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from deployments.clip_files import ClipFiles
from deployments.run import JobRun
from deployments.settings import StackSettings
from deployments.worker import Worker
from serving.jobs import Cell, JobSettings
from serving.media import open_store
from serving.models.family import Denoising, Family, Frames
from serving.models.load import load_family
from serving.plan.catalog import CheckpointPolicy, Placement

LIMITS = JobSettings(lease_s_min=2, quantum_s=0.2)


class Faulty:
    """The real family, which harms its own process where it is told to."""

    def __init__(self, family: Family, faults: Mapping[str, Any]) -> None:
        self._family = family
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def step(self, batch: Sequence[Denoising]) -> None:
        time.sleep(self._faults.get("step_s", 0))
        if any(run.spec.prompt == "poison" for run in batch):
            self.reach("poison")
        self._family.step(batch)
        self.reach(f"step:{batch[0].step}")

    def decode(self, run: Denoising) -> Iterator[Frames]:
        for frames in self._family.decode(run):
            self.reach("decode")
            yield frames

    def reach(self, point: str) -> None:
        if self._faults.get("kill") == point:
            time.sleep(self._faults.get("pause_s", 0))
            os.kill(os.getpid(), signal.SIGKILL)


async def work(order: Mapping[str, Any]) -> None:
    model = StackSettings().catalog().resolve("demo-wan")
    model = model.model_copy(
        update={
            "checkpoint": CheckpointPolicy(every_s=3600, every_steps=order["every_steps"]),
            "placement": Placement(slots=1),
        }
    )
    family = Faulty(load_family(model, Path(order["models_dir"])), order["faults"])
    redis: Redis = Redis.from_url(order["redis_url"], decode_responses=True, socket_timeout=5)
    upload = ClipFiles.upload

    async def faulty_upload(self: ClipFiles, *args: Any) -> Any:
        family.reach("store")
        return await upload(self, *args)

    preempt = JobRun.preempt

    def faulty_preempt(self: JobRun) -> None:
        family.reach("swap")
        preempt(self)

    JobRun.preempt = faulty_preempt  # type: ignore[method-assign]
    ClipFiles.upload = faulty_upload  # type: ignore[method-assign,assignment]
    store = open_store(order["store_url"])
    worker = Worker(model, family, Cell(redis), store, order["replica"], LIMITS)
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    task = asyncio.create_task(worker.run())
    await asyncio.wait({task, asyncio.create_task(done.wait())}, return_when="FIRST_COMPLETED")
    await worker.drain(30)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(work(json.loads(line)))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
