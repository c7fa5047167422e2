"""Speech in this process, by one engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from serving.plan.speech import SpeechEngine, Voice, cannot_be_told


class LocalSpeaker:
    """A :class:`~serving.plan.speech.Speaker`. Sentences are said one at a time, on a thread of its
    own, in the order in which anybody asked for them: so callers take turns."""

    def __init__(self, engine: SpeechEngine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="speech")

    @property
    def sample_rate_hz(self) -> int:
        return self._engine.sample_rate_hz

    def spoken_speed(self, speed: float) -> float:
        return self._engine.spoken_speed(speed)

    async def voices(self) -> Sequence[Voice]:
        return self._engine.voices

    async def ready(self) -> bool:
        return True

    async def speak(
        self, sentences: Sequence[str], voice: str, speed: float, instructions: str = ""
    ) -> AsyncGenerator[bytes, None]:
        if instructions:
            raise cannot_be_told()
        self._engine.check_voice(voice)
        loop, stopped = asyncio.get_running_loop(), threading.Event()

        def say(sentence: str) -> bytes:
            return self._engine.say(sentence, voice, speed, lambda: not stopped.is_set())

        try:
            for sentence in sentences:
                yield await loop.run_in_executor(self._thread, say, sentence)
        finally:
            stopped.set()

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
