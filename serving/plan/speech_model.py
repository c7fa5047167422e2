"""Models that speak, as the catalog has them: what may be asked of them, what it takes and costs.

A file under ``deployments/catalog/`` with a ``speech`` section is one. What is heard at once an
ingress speaks, or has a model server speak, and what may wait a replica that is as light; so they
stand beside the models of :mod:`serving.plan.catalog` and not among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serving.plan.catalog import (
    FloatRange,
    HubWeights,
    PathWeights,
    Placement,
    ServerScaling,
    by_name,
    with_default_classes,
)
from serving.plan.classes import DEFAULT_POLICIES, ClassPolicy, ServiceClass
from serving.plan.errors import ConfigError, InvalidRequest
from serving.plan.sentences import CHARS_MAX
from serving.plan.speech import Gender, Voice

Family = Literal["espeak", "triton", "vits", "bark"]
SPOKEN = {
    "vits": FloatRange(default=1.0, min=0.5, max=2.0),
    "bark": FloatRange(default=1.0, min=1.0, max=1.0),
}
"""Families of neural voices, and how fast each can speak by itself."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpeechLimits(_Strict):
    """What it may be asked for. ``voices`` gives names of other services to voices it has."""

    input_chars_max: int = Field(4096, ge=1, le=100_000, description="of what is heard at once")
    job_chars_max: int = Field(40_000, ge=1, le=100_000, description="of a job, which waits")
    sentence_chars_max: int = Field(
        CHARS_MAX, ge=20, le=CHARS_MAX, description="that it can say at a time"
    )
    speed: FloatRange = FloatRange(default=1.0, min=0.25, max=4.0)
    voice: str = Field(min_length=1, description="where a request names none")
    voices: dict[str, str] = {}
    instructions: bool = Field(False, description="whether it can be told how to speak")


class CheckpointVoice(_Strict):
    """A voice of a checkpoint, by its id there."""

    name: str | None = Field(None, description="its id if absent")
    language: str = Field(pattern=r"^[a-z]{2,3}(-[a-z0-9]{1,8})*$", description="BCP 47")
    gender: Gender = "neutral"


class Checkpoint(_Strict):
    """A neural model's weights, and what they are; this is held to them when they are loaded."""

    weights: HubWeights | PathWeights
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    sample_rate_hz: int = Field(ge=8_000, le=192_000)
    voices: dict[str, CheckpointVoice] = Field(
        min_length=1, description="by id; there may be more of them in the checkpoint"
    )


class TritonSpeech(_Strict):
    """Where its model server is: models of the kind of ``deployments/triton/speech``."""

    url: str | None = Field(
        None, min_length=1, description="host:port of its gRPC; the stack's own if absent"
    )
    model: str = "speech"
    voices_model: str = "speech_voices"
    sample_rate_hz: int = Field(22_050, ge=8_000, le=192_000)
    speed: FloatRange = FloatRange(default=1.0, min=80 / 175, max=450 / 175)
    timeout_s: float = Field(20.0, gt=0, le=600, description="for the next sentence")
    patience_s: float = Field(30.0, ge=0, le=600, description="while it is away, in the middle")


class SpeechCost(_Strict):
    """Seconds of a device that it takes."""

    begin_s: float = Field(0.01, gt=0)
    s_per_kchar: float = Field(gt=0, description="and for each thousand characters")


class SpeechPrice(_Strict):
    """In milli-credits."""

    per_kchar: int = Field(1000, ge=0, description="for each thousand characters")
    minimum: int = Field(10, ge=0, description="for a request, at least")


class SpeechModel(_Strict):
    """One catalog entry. Family ``espeak`` is espeak-ng in the ingress, or at a Triton server where
    the stack has one; ``triton`` is any model of that kind at the server it names. The others have
    a ``checkpoint``, which a Triton server speaks with, as the model that has the entry's id."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    aliases: list[str] = []
    family: Family
    description: str
    licence: str = ""
    speech: SpeechLimits
    triton: TritonSpeech | None = None
    checkpoint: Checkpoint | None = None
    cost: SpeechCost
    price: SpeechPrice = SpeechPrice()
    placement: Placement = Field(
        Placement(num_cpus=0.1, slots=4), description="of the replicas that make its jobs"
    )
    scaling: ServerScaling | None = Field(None, description="of its model server, if it has one")
    classes: Annotated[dict[ServiceClass, ClassPolicy], BeforeValidator(with_default_classes)] = (
        Field(dict(DEFAULT_POLICIES), description="what requests of each class may count on")
    )

    @model_validator(mode="after")
    def _has_a_server(self) -> SpeechModel:
        if self.family == "triton" and self.triton is None:
            raise ValueError("family triton needs a 'triton' section that says which model it is")
        return self

    @model_validator(mode="after")
    def _has_weights(self) -> SpeechModel:
        if (self.family in SPOKEN) != (self.checkpoint is not None):
            raise ValueError(
                f"families {', '.join(SPOKEN)} need a 'checkpoint', and no other has one"
            )
        if self.checkpoint is None:
            return self
        told = {"model", "voices_model", "sample_rate_hz", "speed"}
        if self.triton is not None and (said := sorted(told & self.triton.model_fields_set)):
            raise ValueError(f"triton.{said[0]} is not to be said: it follows from the checkpoint")
        own = self.speech.voices
        for name in (self.speech.voice, *own):
            if own.get(name, name) not in self.checkpoint.voices:
                raise ValueError(f"the voice '{name}' is none of checkpoint.voices")
        if self.speech.instructions:
            raise ValueError(f"the family {self.family} cannot be told how to speak")
        return self

    @property
    def seat(self) -> TritonSpeech:
        """What speaks for it at a model server."""
        seat = self.triton or TritonSpeech()
        if self.checkpoint is None:
            return seat
        rate_hz, speed = self.checkpoint.sample_rate_hz, SPOKEN[self.family]
        return seat.model_copy(update={"model": self.id, "sample_rate_hz": rate_hz, "speed": speed})

    @property
    def own_voices(self) -> list[Voice]:
        """Those of its checkpoint, by id; none where the engine knows them itself."""
        told = self.checkpoint.voices if self.checkpoint else {}
        return sorted(
            (Voice(id, each.name or id, each.language, each.gender) for id, each in told.items()),
            key=lambda voice: voice.id,
        )

    def device_ms(self, chars: int) -> int:
        """What a text of so many characters is estimated to take."""
        return max(1, round(1000 * (self.cost.begin_s + self.cost.s_per_kchar * chars / 1000)))

    def milli_credits(self, chars: int) -> int:
        """What it costs, rounded up."""
        return max(self.price.minimum, -(-self.price.per_kchar * chars // 1000))


class SpeechCatalog:
    """Models that speak, by id and by alias. The first is the default one."""

    def __init__(self, models: Iterable[SpeechModel] = ()) -> None:
        self.models = {model.id: model for model in models}
        self._by_name = by_name(self.models.values())

    def __contains__(self, name: str) -> bool:
        """Whether there is a model of this id or alias."""
        return name in self._by_name

    def resolve(self, name: str) -> SpeechModel:
        """The model called ``name`` or with that alias; :class:`InvalidRequest` if none."""
        try:
            return self._by_name[name]
        except KeyError:
            served = ", ".join(sorted(self._by_name)) or "none"
            raise InvalidRequest(
                f"No model '{name[:64]}' speaks here. Those that do: {served}.",
                code="model_not_found",
                param="model",
            ) from None

    def only(self, ids: Iterable[str]) -> SpeechCatalog:
        """A catalog of just these models, in this order; ConfigError for an unknown one."""
        chosen = []
        for name in ids:
            if name not in self.models:
                raise ConfigError(
                    f"no model '{name}' that speaks in the catalog; there are "
                    f"{', '.join(sorted(self.models)) or 'none'}"
                )
            chosen.append(self.models[name])
        return SpeechCatalog(chosen)


def speaks(raw: Mapping[str, Any]) -> bool:
    """Whether this file's content is an entry of a model that speaks."""
    return "speech" in raw


def load_speech(folders: Iterable[Path]) -> SpeechCatalog:
    """Every model that speaks, of the folders' ``*.yaml``. A later folder's entry replaces an
    earlier one's; ConfigError names the file and the field."""
    entries: dict[str, SpeechModel] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            try:
                raw = yaml.safe_load(file.read_text())
            except yaml.YAMLError as error:
                raise ConfigError(f"{file}: not YAML: {error}") from error
            if not isinstance(raw, Mapping) or not speaks(raw):
                continue
            try:
                model = SpeechModel.model_validate(raw)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ConfigError(f"{file}: {where}: {first['msg']}") from error
            entries[model.id] = model
    return SpeechCatalog(entries.values())
