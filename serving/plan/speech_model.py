"""Models that speak, as the catalog has them: what may be asked of them, what it takes and costs.

A file under ``deployments/catalog/`` with a ``speech`` section is one. They have no replicas of
their own: an ingress speaks, or has a model server speak, so they stand beside the models of
:mod:`serving.plan.catalog` and not among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serving.plan.catalog import FloatRange, ServerScaling, by_name, with_default_classes
from serving.plan.classes import DEFAULT_POLICIES, ClassPolicy, ServiceClass
from serving.plan.errors import ConfigError, InvalidRequest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpeechLimits(_Strict):
    """What it may be asked for. ``voices`` gives names of other services to voices it has."""

    input_chars_max: int = Field(4096, ge=1, le=100_000)
    speed: FloatRange = FloatRange(default=1.0, min=0.25, max=4.0)
    voice: str = Field(min_length=1, description="where a request names none")
    voices: dict[str, str] = {}
    instructions: bool = Field(False, description="whether it can be told how to speak")


class TritonSpeech(_Strict):
    """Where its model server is: models of the kind of ``deployments/triton/speech``."""

    url: str = Field(min_length=1, description="host:port of its gRPC")
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
    the stack has one; ``triton`` is any model of that kind at the server it names."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    aliases: list[str] = []
    family: Literal["espeak", "triton"]
    description: str
    licence: str = ""
    speech: SpeechLimits
    triton: TritonSpeech | None = None
    cost: SpeechCost
    price: SpeechPrice = SpeechPrice()
    scaling: ServerScaling | None = Field(None, description="of its model server, if it has one")
    classes: Annotated[dict[ServiceClass, ClassPolicy], BeforeValidator(with_default_classes)] = (
        Field(dict(DEFAULT_POLICIES), description="what requests of each class may count on")
    )

    @model_validator(mode="after")
    def _has_a_server(self) -> SpeechModel:
        if self.family == "triton" and self.triton is None:
            raise ValueError("family triton needs a 'triton' section with the server's url")
        return self

    def server(self, triton_url: str | None) -> TritonSpeech | None:
        """Its own, or else the stack's; None: it speaks in the ingress."""
        return self.triton or (TritonSpeech(url=triton_url) if triton_url else None)

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
