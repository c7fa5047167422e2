"""What tests of texts that are spoken as jobs share."""

from __future__ import annotations

import io
import itertools

import av
import numpy as np

from deployments.settings import StackSettings
from serving.jobs import Job, JobQueue, Limits, Wish
from serving.jobs.queue import NO_LIMITS, NO_WISH
from serving.media import AudioFormat
from serving.plan.speech_model import SpeechModel
from serving.plan.speech_spec import SpeechSpec

FOX = "The quick brown fox jumps over the lazy dog."
_numbers = itertools.count()


def text(sentences: int) -> str:
    """So many of them, no two the same."""
    return " ".join(f"This is sentence number {n} of a text." for n in range(sentences))


def seconds(audio_format: str, data: bytes) -> float:
    """How long it sounds; it must be loud enough to be heard."""
    if audio_format == "pcm":
        samples, rate = np.frombuffer(data, "<i2").astype(float) / 32768, 24_000
    else:
        with av.open(io.BytesIO(data), "r") as container:
            frames = list(container.decode(audio=0))
        rate = frames[0].sample_rate
        to_float = av.AudioResampler("flt", "mono")
        parts = [each.to_ndarray()[0] for frame in frames for each in to_float.resample(frame)]
        samples = np.concatenate(parts)
    assert np.sqrt((samples**2).mean()) > 0.01
    return len(samples) / rate


def voice_model() -> SpeechModel:
    """The entry that comes with the code."""
    return StackSettings().speech_catalog().resolve("tts-1")


async def submit_text(
    queue: JobQueue,
    said: str,
    *,
    user: str = "ann",
    price: int | None = None,
    limits: Limits = NO_LIMITS,
    wish: Wish = NO_WISH,
    audio_format: AudioFormat = AudioFormat.PCM,
) -> Job:
    """The job that was accepted."""
    model = voice_model()
    admission = await queue.submit(
        f"audio_{next(_numbers)}",
        user=user,
        alias="tts-1",
        spec=SpeechSpec(
            model=model.id,
            input=said,
            voice="en-us",
            asked_voice="alloy",
            speed=1,
            audio_format=audio_format,
        ),
        est_device_ms=model.device_ms(len(said)),
        price=price,
        limits=limits,
        wish=wish,
    )
    assert admission.job is not None
    return admission.job
