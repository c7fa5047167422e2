"""The wire of speech: what is asked for, in OpenAI's shape, and what models and voices are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.api.schemas import JobCreate, Number, Shown, Standing, Text, card, shown, timings
from serving.jobs import Job
from serving.media import CODECS, AudioFormat
from serving.media.audio import CHANNELS, LOUDNESS_MAX, LOUDNESS_MIN, RATE_HZ
from serving.plan.speech_model import SpeechModel

INPUT_SHOWN_CHARS = 1000
"""A page of a hundred texts is to be read in one go."""
INSTRUCTIONS_CHARS_MAX = 4096


class VoiceName(BaseModel):
    """A voice, as an object."""

    model_config = ConfigDict(extra="forbid")

    id: Text


class GenerationCreate(JobCreate):
    """``POST /v1/audio/generations``."""

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
    loudness: Number | None = Field(
        None,
        ge=LOUDNESS_MIN,
        le=LOUDNESS_MAX,
        description="LUFS to bring it to (EBU R128), such as -16; as the model has it if absent",
    )

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceName) else self.voice


class SpeechCreate(GenerationCreate):
    """``POST /v1/audio/speech``."""

    stream_format: Literal["audio", "sse"] = Field(
        "audio", description="the bytes as they come, or events with base64 in them"
    )
    as_job: bool = Field(
        False,
        alias="async",
        description="true: answer at once with a generation, as POST /v1/audio/generations does",
    )


class SpeechTimings(BaseModel):
    """Seconds each stage took, once it is complete."""

    queued_s: float
    speak_s: float
    store_s: float = Field(description="the end of the file's encoding, and the upload")
    total_s: float = Field(description="from submission to completion")


class Generation(Shown):
    """A job that makes sound. Its steps are sentences."""

    object: Literal["audio.generation"] = "audio.generation"
    input: str = Field(description=f"the first {INPUT_SHOWN_CHARS} characters of it")
    characters: int = Field(description="how many there are, which is what is paid for")
    voice: str
    speed: float
    response_format: AudioFormat
    loudness: float | None
    seconds: float | None = Field(description="how long it sounds, once complete")
    timings: SpeechTimings | None


def generation_of(job: Job, standing: Standing) -> Generation:
    """A job that makes sound, as its owner sees it."""
    spec, took = job.speech, timings(job)
    return Generation(
        **shown(job, standing),
        input=spec.input[:INPUT_SHOWN_CHARS],
        characters=len(spec.input),
        voice=spec.asked_voice,
        speed=spec.speed,
        response_format=spec.audio_format,
        loudness=spec.loudness_lufs,
        seconds=round(job.result["duration_s"], 3) if job.result else None,
        timings=SpeechTimings(**took) if took else None,
    )


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
        "job_chars_max": limits.job_chars_max,
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
