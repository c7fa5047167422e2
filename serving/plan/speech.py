"""Speech: what a voice is, and what everything that speaks can be asked for.

Plain values. Who implements :class:`Speaker` says so in its own room; audio is bytes here, 16-bit
little-endian mono PCM.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from serving.plan.errors import InvalidRequest

SILENT_S_MAX = 60.0
"""A speaker that makes nothing for longer is taken to hang. It gives up sooner by itself when its
engine is away."""

Gender = Literal["female", "male", "neutral"]


class AudioFormat(StrEnum):
    """What sound can be delivered as; ``serving/media`` makes it."""

    MP3 = "mp3"
    OPUS = "opus"
    AAC = "aac"
    FLAC = "flac"
    WAV = "wav"
    PCM = "pcm"


@dataclass(frozen=True)
class Voice:
    """One way to sound. ``language`` is a BCP 47 tag in lower case, such as ``en-us``."""

    id: str
    name: str
    language: str
    gender: Gender


class Speaker(Protocol):
    """Makes sentences heard. One interface, wherever the model runs."""

    @property
    def sample_rate_hz(self) -> int:
        """Of all that it says."""

    async def voices(self) -> Sequence[Voice]:
        """Those it has now, by id."""

    def speak(
        self, sentences: Sequence[str], voice: str, speed: float, instructions: str = ""
    ) -> AsyncIterator[bytes]:
        """Each sentence's PCM, in order, as soon as it is there; pauses included.

        ``speed``: 1 is normal, and the nearest it can do is taken (:meth:`spoken_speed`).
        ``instructions``: how to say it. Closing the iterator stops the work. Raises
        :class:`InvalidRequest` for a voice it has not and for instructions where it takes none, a
        retryable :class:`ServiceUnavailable` when its engine is away for longer than it bears.
        """

    async def ready(self) -> bool:
        """Whether it could speak now. A server that was never held to what the catalog says of it
        is held to it first: :class:`ConfigError` with the differences, a retryable
        :class:`ServiceUnavailable` while it is away."""

    def spoken_speed(self, speed: float) -> float:
        """The nearest speed it can speak at; the rest is time-stretching."""


class SpeechEngine(Protocol):
    """Makes a sentence heard in this process, and blocks for as long. May be asked from any thread.

    Who speaks with it, :class:`Speaker` or not, sees to whose turn it is.
    """

    @property
    def sample_rate_hz(self) -> int:
        """Of all that it says."""

    @property
    def voices(self) -> Sequence[Voice]:
        """Those it has, by id."""

    def spoken_speed(self, speed: float) -> float:
        """The nearest speed it can speak at."""

    def check_voice(self, voice: str) -> None:
        """:class:`InvalidRequest` for a voice it has not."""

    def say(
        self, text: str, voice: str, speed: float = 1.0, wanted: Callable[[], bool] | None = None
    ) -> bytes:
        """A sentence's PCM, pauses included; what there is of it once ``wanted`` says no.

        Raises :class:`InvalidRequest` for a voice it has not and :class:`ModelFailed`.
        """


def no_such_voice(voice: str) -> InvalidRequest:
    """What whoever speaks raises for a voice it has not."""
    return InvalidRequest(f"There is no voice '{voice[:64]}'.", param="voice")


def cannot_be_told() -> InvalidRequest:
    """What a :class:`Speaker` that takes no instructions raises for some."""
    return InvalidRequest(
        "This model cannot be told how to speak.",
        code="unsupported_parameter",
        param="instructions",
    )
