"""The wire of speech: what is asked for, in OpenAI's shape, and what models and voices are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.api.schemas import Number, Text, card, milli
from serving.media import CODECS, AudioFormat
from serving.media.audio import CHANNELS, LOUDNESS_MAX, LOUDNESS_MIN, RATE_HZ
from serving.plan.classes import ServiceTier
from serving.plan.speech_model import SpeechModel

INSTRUCTIONS_CHARS_MAX = 4096


class VoiceName(BaseModel):
    """A voice, as an object."""

    model_config = ConfigDict(extra="forbid")

    id: Text


class SpeechCreate(BaseModel):
    """``POST /v1/audio/speech``."""

    model_config = ConfigDict(extra="forbid")

    input: Text = Field(description="what is said")
    model: Text | None = Field(None, description="a model's id or alias; the first one if absent")
    voice: Text | VoiceName | None = Field(
        None, description="one of GET /v1/audio/voices; the model's own if absent"
    )
    instructions: Text | None = Field(
        None,
        max_length=INSTRUCTIONS_CHARS_MAX,
        description="how it is said, where the model can be told",
    )
    response_format: AudioFormat = Field(AudioFormat.MP3, description=", ".join(AudioFormat))
    speed: Number | None = Field(None, allow_inf_nan=False, description="1 is normal")
    stream_format: Literal["audio", "sse"] = Field(
        "audio", description="the bytes as they come, or events with base64 in them"
    )
    loudness: Number | None = Field(
        None,
        ge=LOUDNESS_MIN,
        le=LOUDNESS_MAX,
        description="LUFS to bring it to (EBU R128), such as -16; as the model has it if absent",
    )
    service_tier: Annotated[
        ServiceTier, BeforeValidator(lambda value: ServiceTier.AUTO if value is None else value)
    ] = Field(ServiceTier.AUTO, description="as of a video")
    max_credits: Number | None = Field(
        None,
        ge=0,
        le=10**9,
        allow_inf_nan=False,
        description="beyond the allowance, credits may pay for it, so many at most",
    )

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceName) else self.voice

    @property
    def max_milli(self) -> int | None:
        """``max_credits`` in milli-credits."""
        return None if self.max_credits is None else milli(self.max_credits, "max_credits")


class AudioVoice(BaseModel):
    """A voice of a model; ``same_as`` is the one that another service's name stands for."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    model: str
    name: str
    language: str
    gender: str
    same_as: str | None = None


class VoiceList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AudioVoice]


def speech_card(model: SpeechModel) -> dict[str, Any]:
    """A model in OpenAI's shape, with what it can be asked for."""
    limits = model.speech
    return {
        **card(model, "speech"),
        "input_chars_max": limits.input_chars_max,
        "speed": limits.speed.model_dump(),
        "default_voice": limits.voice,
        "instructions": limits.instructions,
        "formats": {
            each: {
                "media_type": codec.media_type,
                "sample_rate_hz": RATE_HZ,
                "channels": CHANNELS,
            }
            for each, codec in CODECS.items()
        },
    }
