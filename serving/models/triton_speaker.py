"""Speech by a model of a Triton server, of the kind that ``deployments/triton/speech`` is.

A sentence is one response. So when the server is lost in the middle of a text, what was heard is
known, and the next one goes on with the sentence after it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np

from serving.models.triton import TritonModel, TritonServer, strings
from serving.plan.errors import ModelFailed, ServiceUnavailable
from serving.plan.speech import Gender, Voice, cannot_be_told, no_such_voice
from serving.plan.triton import Tensor, TritonModelSpec

log = logging.getLogger(__name__)

SPEECH = TritonModelSpec(
    model="speech",
    inputs={
        "SENTENCES": Tensor(dtype="BYTES", shape=(-1, -1)),
        "VOICE": Tensor(dtype="BYTES", shape=(-1, 1)),
        "SPEED": Tensor(dtype="FP32", shape=(-1, 1)),
    },
    outputs={
        "AUDIO": Tensor(dtype="INT16", shape=(-1, -1)),
        "SAMPLE_RATE": Tensor(dtype="INT32", shape=(-1, 1)),
    },
    streaming=True,
    timeout_s=20,
)
"""What such a model takes and gives. ``model``, ``version`` and ``timeout_s`` may be others, and
one that can be told how to speak takes :data:`INSTRUCTIONS` as well."""
INSTRUCTIONS = {"INSTRUCTIONS": Tensor(dtype="BYTES", shape=(-1, 1))}
"""Empty where a request has none."""
VOICES = TritonModelSpec(
    model="speech_voices",
    inputs={"LANGUAGE": Tensor(dtype="BYTES", shape=(1,))},
    outputs={
        name: Tensor(dtype="BYTES", shape=(-1,)) for name in ("ID", "NAME", "LANGUAGES", "GENDER")
    },
    timeout_s=5,
)
"""And the one beside it that knows its voices."""

PATIENCE_S = 30.0
"""For how long it is tried to go on where the server was lost: longer than one takes to start."""
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
VOICES_S = 60.0
"""A list of voices is asked for again after this."""


class TritonSpeaker:
    """A :class:`~serving.plan.speech.Speaker`.

    ``sample_rate_hz`` is what the catalog says, and every response is held to it. ``voices``: the
    model that knows them, or they themselves. ``speed_range``: what the model can speak at.
    ``instructed``: it can be told how to speak, so it must have an input for that.
    """

    def __init__(
        self,
        server: TritonServer,
        sample_rate_hz: int,
        *,
        speech: TritonModelSpec = SPEECH,
        voices: TritonModelSpec | Sequence[Voice] = VOICES,
        speed_range: tuple[float, float] = (80 / 175, 450 / 175),
        instructed: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        inputs = {**speech.inputs, **INSTRUCTIONS} if instructed else speech.inputs
        self._speech: TritonModel = server.model(speech.model_copy(update={"inputs": inputs}))
        self._listing: TritonModel | None = None
        self._voices: dict[str, Voice] = {}
        if isinstance(voices, TritonModelSpec):
            self._listing = server.model(voices)
        else:
            self._voices = {voice.id: voice for voice in voices}
        self._sample_rate_hz, self._speed_range = sample_rate_hz, speed_range
        self._instructed = instructed
        self._patience_s = patience_s
        self._checked = False
        self._listed_s = -VOICES_S

    @property
    def sample_rate_hz(self) -> int:
        return self._sample_rate_hz

    def spoken_speed(self, speed: float) -> float:
        slowest, fastest = self._speed_range
        return min(max(speed, slowest), fastest)

    async def check(self) -> None:
        """:class:`ConfigError` unless the server's models are of this kind."""
        await self._speech.check()
        if self._listing is not None:
            await self._listing.check()
        self._checked = True

    async def ready(self) -> bool:
        if not self._checked:
            await self.check()
        return await self._speech.ready()

    async def voices(self) -> Sequence[Voice]:
        """As the server said within the last minute; for as long as it is away, as it said last."""
        if self._listing is not None and time.monotonic() - self._listed_s > VOICES_S:
            try:
                told = await self._listing.infer({"LANGUAGE": strings([""])})
            except ServiceUnavailable:
                if not self._voices:
                    raise
            else:
                self._voices, self._listed_s = _voices(told), time.monotonic()
        return list(self._voices.values())

    async def speak(
        self, sentences: Sequence[str], voice: str, speed: float, instructions: str = ""
    ) -> AsyncGenerator[bytes, None]:
        if instructions and not self._instructed:
            raise cannot_be_told()
        await self.voices()
        if voice not in self._voices:
            raise no_such_voice(voice)
        heard, tries, progress_s = 0, 0, time.monotonic()
        while heard < len(sentences):
            try:
                left = self._stream(sentences[heard:], voice, speed, instructions)
                async with aclosing(left) as spoken:
                    async for pcm in spoken:
                        yield pcm
                        heard, tries, progress_s = heard + 1, 0, time.monotonic()
            except ServiceUnavailable as error:
                if time.monotonic() - progress_s > self._patience_s:
                    raise
                log.warning("speech goes on after %d sentences: %s", heard, error)
                await asyncio.sleep(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])
                tries += 1

    async def _stream(
        self, sentences: Sequence[str], voice: str, speed: float, instructions: str
    ) -> AsyncGenerator[bytes, None]:
        given = {
            "SENTENCES": strings(list(sentences), 1, len(sentences)),
            "VOICE": strings([voice], 1, 1),
            "SPEED": np.array([[self.spoken_speed(speed)]], np.float32),
            "INSTRUCTIONS": strings([instructions], 1, 1),
        }
        said = 0
        async with aclosing(self._speech.stream(given)) as responses:
            async for response in responses:
                rate = int(response["SAMPLE_RATE"].item())
                if rate != self._sample_rate_hz:
                    raise ModelFailed(
                        f"The speech model's audio has {rate} Hz, and its catalog entry says "
                        f"{self._sample_rate_hz}."
                    )
                said += 1
                yield response["AUDIO"].astype("<i2").tobytes()
        if said != len(sentences):
            raise ModelFailed(f"The speech model said {said} of {len(sentences)} sentences.")


def _voices(told: dict[str, np.ndarray]) -> dict[str, Voice]:
    columns = [
        [each.decode() for each in told[name]] for name in ("ID", "NAME", "LANGUAGES", "GENDER")
    ]
    return {
        own_id: Voice(own_id, name, language, _gender(gender))
        for own_id, name, language, gender in zip(*columns, strict=True)
    }


def _gender(text: str) -> Gender:
    genders: dict[str, Gender] = {"female": "female", "male": "male"}
    return genders.get(text, "neutral")
