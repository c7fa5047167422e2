"""The wire: what clients send and what they get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.api.keys import GRACE_S_DEFAULT, GRACE_S_MAX, Scope
from serving.jobs import Job, State
from serving.plan.catalog import Model
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.clip import UPSCALE
from serving.plan.errors import InvalidRequest
from serving.plan.price import MILLI
from serving.plan.speech_model import SpeechModel


def _text(value: object) -> object:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid Unicode text") from None
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _auto(value: object) -> object:
    return ServiceTier.AUTO if value is None else value


Text = Annotated[str, BeforeValidator(_text)]
Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]


def milli(credits: float, field: str) -> int:
    """An amount in milli-credits; :class:`InvalidRequest` if it has more than three decimals."""
    amount = round(credits * MILLI)
    if amount / MILLI != credits:
        raise InvalidRequest(f"'{field}' may have three decimals at most.", param=field)
    return amount


class JobCreate(BaseModel):
    """What every submission may say beside what is to be made. What a model allows is in
    ``GET /v1/models``."""

    model_config = ConfigDict(extra="forbid")

    service_tier: Annotated[ServiceTier, BeforeValidator(_auto)] = Field(
        ServiceTier.AUTO,
        description="who goes first: priority (class burst), default (standard), flex (relaxed, "
        "and sparing the allowance where it can), or auto, what the caller's tier gives",
    )
    max_credits: Number | None = Field(
        None,
        ge=0,
        le=10**9,
        allow_inf_nan=False,
        description="beyond the allowance, credits may pay for it, so many at most",
    )

    @property
    def max_milli(self) -> int | None:
        """``max_credits`` in milli-credits."""
        return None if self.max_credits is None else milli(self.max_credits, "max_credits")


class VideoCreate(JobCreate):
    """``POST /v1/videos``."""

    prompt: Text = Field(description="what the clip shows")
    model: Text | None = Field(None, description="a model's id or alias; the first one if absent")
    seconds: Integer | None = Field(None, description="length of the clip, as number or string")
    size: Text | None = Field(None, description="WIDTHxHEIGHT", examples=["1280x720"])
    seed: Integer | None = Field(None, description="the same request and seed give the same bytes")
    negative_prompt: Text | None = Field(None, description="what the clip should not show")
    steps: Integer | None = Field(None, description="denoising steps")
    guidance_scale: Number | None = Field(None, description="1 turns guidance off")
    fps: Integer | None = Field(None, description="frames a second")
    upscale: Integer | None = Field(
        None, description="2 for a clip of twice the width and height of `size`; 1 for none"
    )


class ErrorBody(BaseModel):
    code: str
    message: str


class Usage(BaseModel):
    """What a job used so far, and of what."""

    gpu_seconds: float
    paid_from: str = Field(
        serialization_alias="from", description="allowance, relaxed (nothing is counted) or credits"
    )
    credits: float = Field(description="held for it, and once it has ended, what it cost")


@dataclass(frozen=True)
class Standing:
    """What a job's record does not say of it. Position and time left are None once it has ended,
    the URLs before."""

    queue_position: int | None = None
    remaining_ms: int | None = None
    content_urls: dict[str, str] | None = None
    preview_url: str | None = None


class Shown(BaseModel):
    """A job as its owner sees it, whatever it makes."""

    id: str
    object: str
    model: str
    status: State
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: ErrorBody | None
    phase: str | None
    step: int
    steps: int
    attempts: int
    service_tier: ServiceTier = Field(description="as it was asked for")
    service_class: ServiceClass = Field(
        serialization_alias="class",
        description="as it was accepted: burst goes before standard, standard before relaxed",
    )
    usage: Usage
    queue_position: int | None = Field(description="how many jobs go before this one")
    eta_seconds: float | None = Field(description="estimated time left")
    size_bytes: int | None
    content_urls: dict[str, str] | None = Field(
        description="by variant, once complete: short-lived URLs that need no key"
    )


def shown(job: Job, standing: Standing) -> dict[str, Any]:
    """The fields of :class:`Shown`, but for ``object``."""
    remaining_ms, result = standing.remaining_ms, job.result
    return {
        "id": job.id,
        "model": job.alias,
        "status": job.state,
        "progress": job.progress,
        "created_at": job.created_ms // 1000,
        "completed_at": job.finished_ms // 1000 if job.state is State.COMPLETED else None,
        "expires_at": job.expires_ms // 1000 if job.expires_ms else None,
        "error": ErrorBody(**job.error) if job.error else None,
        "phase": job.phase,
        "step": job.step,
        "steps": job.spec.steps,
        "attempts": job.attempts,
        "service_tier": job.service_tier,
        "service_class": job.service_class,
        "usage": Usage(
            gpu_seconds=round(job.spent_ms / 1000, 3),
            paid_from=job.paid_from,
            credits=job.credits / MILLI,
        ),
        "queue_position": standing.queue_position,
        "eta_seconds": None if remaining_ms is None else round(remaining_ms / 1000, 1),
        "size_bytes": result["artifacts"][job.kind]["size_bytes"] if result else None,
        "content_urls": standing.content_urls,
    }


def timings(job: Job) -> dict[str, float] | None:
    """Seconds that each stage took, once the job is complete."""
    if not job.result:
        return None
    stages: Mapping[str, float] = job.result["stages"]
    return {
        "queued_s": round((job.started_ms - job.created_ms) / 1000, 3),
        "total_s": round((job.finished_ms - job.created_ms) / 1000, 3),
        **{name: round(value, 3) for name, value in stages.items()},
    }


class Timings(BaseModel):
    """Seconds each stage took, once the clip is complete."""

    queued_s: float
    encode_s: float = Field(description="text encoding")
    denoise_s: float
    decode_s: float = Field(description="latents to pictures; the file is encoded alongside")
    upscale_s: float = Field(0.0, description="of requests to the upscaler, also alongside")
    store_s: float = Field(description="the rest of the file's encoding, and the upload")
    total_s: float = Field(description="from submission to completion")


class Video(Shown):
    """A video job, in OpenAI's shape with additional fields."""

    object: Literal["video"] = "video"
    seconds: str
    size: str
    prompt: str
    remixed_from_video_id: str | None
    negative_prompt: str
    seed: int
    guidance_scale: float
    fps: int
    upscale: int = Field(description="how many times the `size` that was asked for `size` is")
    timings: Timings | None
    preview_url: str | None = Field(
        description="while it runs, once there is one: the newest preview, likewise; another URL "
        "for another picture"
    )


def video_of(job: Job, standing: Standing) -> Video:
    """A job that makes a clip, as its owner sees it."""
    spec, took = job.clip, timings(job)
    return Video(
        **shown(job, standing),
        seconds=str(spec.seconds),
        size=spec.size,
        prompt=spec.prompt,
        remixed_from_video_id=None,
        negative_prompt=spec.negative_prompt,
        seed=spec.seed,
        guidance_scale=spec.guidance_scale,
        fps=spec.fps,
        upscale=spec.upscale,
        timings=Timings(**took) if took else None,
        preview_url=standing.preview_url,
    )


Item = TypeVar("Item", bound=Shown)


class Listing(BaseModel, Generic[Item]):
    """A page; ``last_id`` is the next one's ``after``."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool = True


def card(model: Model | SpeechModel, modality: str) -> dict[str, Any]:
    """A model in OpenAI's shape, without what it can do."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "reelserve",
        "aliases": model.aliases,
        "description": model.description,
        "licence": model.licence,
        "modality": modality,
    }


def model_card(model: Model) -> dict[str, Any]:
    """A model in OpenAI's shape, with what it can make."""
    limits = model.video
    return {
        **card(model, "video"),
        "sizes": list(limits.sizes),
        "default_size": limits.default_size,
        "seconds": sorted(limits.seconds),
        "default_seconds": limits.default_seconds,
        "fps": limits.fps.model_dump(),
        "upscale": [1, UPSCALE] if model.upscales else [1],
        "steps": limits.steps.model_dump(),
        "guidance_scale": limits.guidance_scale.model_dump(),
        "prompt_chars_max": limits.prompt_chars_max,
    }


class KeyCreate(BaseModel):
    """``POST /v1/admin/keys``."""

    model_config = ConfigDict(extra="forbid")

    user: Text = Field(description="whom the key speaks for")
    scopes: list[Scope] = Field(
        [Scope.GENERATE, Scope.READ], description="what it may do", max_length=len(Scope)
    )
    tier: Text | None = Field(
        None, min_length=1, description="the user's tier from now on; theirs if absent"
    )


class KeyRotate(BaseModel):
    """``POST /v1/admin/keys/{id}/rotate``."""

    model_config = ConfigDict(extra="forbid")

    grace_s: Integer = Field(
        GRACE_S_DEFAULT,
        ge=0,
        le=GRACE_S_MAX,
        description="seconds the secret before works on; 0 ends it at once",
    )


class UserUpdate(BaseModel):
    """``PUT /v1/admin/users/{user}``."""

    model_config = ConfigDict(extra="forbid")

    tier: Text | None = Field(
        min_length=1, description="the user's tier from now on; null: the default one"
    )
