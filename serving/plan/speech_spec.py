"""What one job is asked to say, with every default filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from serving.plan.errors import InvalidRequest
from serving.plan.sentences import CHARS_MAX, sentences, speakable
from serving.plan.speech import AudioFormat, Voice
from serving.plan.speech_model import SpeechModel

VOICES_NAMED = 20
"""So many are named to who asked for one that there is not."""


class SpeechSpec(BaseModel):
    """A complete, validated description of one text that is spoken, a sentence at a time.

    ``voice`` is the model's own id of what the caller called ``asked_voice``.
    """

    # What does not fit must not bring a text into a log.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    kind: Literal["speech"] = "speech"
    model: str
    input: str
    voice: str
    asked_voice: str
    speed: float
    audio_format: AudioFormat
    loudness_lufs: float | None = None
    instructions: str = ""
    sentence_chars_max: int = CHARS_MAX

    @cached_property
    def sentences(self) -> Sequence[str]:
        """What is said at a time, in order."""
        return sentences(self.input, self.sentence_chars_max)

    @property
    def steps(self) -> int:
        return len(self.sentences)

    @property
    def shape(self) -> str:
        """Any two texts may be spoken side by side."""
        return "-"

    @property
    def rows(self) -> int:
        return 1

    def left_share(self, step: int) -> float:
        """The part of the work that ``step`` sentences leave, by their letters."""
        return sum(map(len, self.sentences[step:])) / max(1, sum(map(len, self.sentences)))

    @classmethod
    def resolve(
        cls,
        model: SpeechModel,
        *,
        input: str,
        voice: str | None,
        speed: float | None,
        audio_format: AudioFormat,
        loudness_lufs: float | None,
        instructions: str | None,
        has: Iterable[Voice],
    ) -> Self:
        """Fill in the model's defaults and hold every value to its limits, but for how long a text
        may be. ``has``: the voices it has now.

        Raises :class:`InvalidRequest` with the offending ``param`` and what is allowed.
        """
        limits = model.speech
        if not speakable(input):
            raise InvalidRequest(
                "'input' has nothing to say: it needs a letter or a digit.", param="input"
            )
        if instructions and not limits.instructions:
            raise InvalidRequest(
                f"The model '{model.id}' cannot be told how to speak; leave 'instructions' out.",
                code="unsupported_parameter",
                param="instructions",
            )
        speed = limits.speed.default if speed is None else speed
        if not limits.speed.min <= speed <= limits.speed.max:
            raise InvalidRequest(
                f"'speed' must be from {limits.speed.min:g} to {limits.speed.max:g}, "
                f"not {speed:g}.",
                code="out_of_range",
                param="speed",
            )
        name = voice or limits.voice
        return cls(
            model=model.id,
            input=input,
            voice=_own_voice(model, name, {each.id for each in has}),
            asked_voice=name,
            speed=speed,
            audio_format=audio_format,
            loudness_lufs=loudness_lufs,
            instructions=instructions or "",
            sentence_chars_max=limits.sentence_chars_max,
        )


def _own_voice(model: SpeechModel, name: str, has: set[str]) -> str:
    """The model's own id of a voice."""
    own = model.speech.voices.get(name, name)
    if own in has:
        return own
    some = ", ".join([*model.speech.voices, *sorted(has)][:VOICES_NAMED])
    raise InvalidRequest(
        f"The model '{model.id}' has no voice '{name[:64]}'. It has {some}; "
        "GET /v1/audio/voices lists all.",
        code="voice_not_found",
        param="voice",
    )
