"""A process that speaks jobs, as a replica does, and harms itself where it is told to.

Its argument is JSON: ``redis_url``, ``store_url``, ``replica``, ``log`` (a file that gets a line
for each sentence that was said), ``slots``, ``sentence_s`` (what saying one takes longer) and
``kill``: ``{"said": 3}`` has it gone once three sentences were said; ``put``, ``checkpoint``,
``upload`` and ``complete`` before so many of these calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from deployments.settings import StackSettings
from deployments.speech_file import SpeechFile
from deployments.speech_worker import SpeechWorker
from deployments.spoken import Spoken
from serving.jobs import Cell, JobSettings, Leases
from serving.media import open_store
from serving.models.espeak import espeak
from serving.models.local_speaker import LocalSpeaker
from serving.plan.catalog import Placement

LIMITS = JobSettings(lease_s_min=2, quantum_s=0.2)


class Slow(LocalSpeaker):
    """The real one, which keeps a log of what it said, and may take longer."""

    def __init__(self, log: Path, sentence_s: float, reach: Callable[[str], None]) -> None:
        super().__init__(espeak())
        self._log, self._sentence_s, self._reach = log, sentence_s, reach

    async def speak(
        self, sentences: Sequence[str], voice: str, speed: float, instructions: str = ""
    ) -> AsyncGenerator[bytes, None]:
        at = iter(sentences)
        async for pcm in super().speak(sentences, voice, speed, instructions):
            await asyncio.sleep(self._sentence_s)
            with self._log.open("a") as log:
                log.write(f"{next(at)}\n")
            self._reach("said")
            yield pcm


def killing(points: dict[str, int]) -> Callable[[str], None]:
    """Gone when one of these is reached so many times."""
    seen: Counter[str] = Counter()

    def reach(point: str) -> None:
        seen[point] += 1
        if points.get(point) == seen[point]:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


def guard(owner: type, name: str, reach: Callable[[str], None]) -> None:
    """Reach the point of this name before each call."""
    call: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def guarded(*args: Any, **named: Any) -> Any:
        reach(name)
        return await call(*args, **named)

    setattr(owner, name, guarded)


async def work(order: dict[str, Any]) -> None:
    reach = killing(order.get("kill", {}))
    guard(Spoken, "put", reach)
    guard(Leases, "checkpoint", reach)
    guard(Leases, "complete", reach)
    guard(SpeechFile, "upload", reach)
    model = StackSettings().speech_catalog().resolve("tts-1")
    model = model.model_copy(update={"placement": Placement(slots=order.get("slots", 1))})
    speaker = Slow(Path(order["log"]), order.get("sentence_s", 0), reach)
    redis: Redis = Redis.from_url(order["redis_url"], decode_responses=True, socket_timeout=5)
    store = open_store(order["store_url"])
    worker = SpeechWorker(model, speaker, Cell(redis), store, order["replica"], LIMITS)
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    task = asyncio.create_task(worker.run())
    await asyncio.wait({task, asyncio.create_task(done.wait())}, return_when="FIRST_COMPLETED")
    await worker.drain(30)


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))
