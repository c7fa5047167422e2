"""``/v1/estimates``: what a submission would cost, wait for and be paid from. Nothing is made."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from serving.api.admission import Wanted, admit, clip_order, wanted
from serving.api.auth import GenerateDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.keys import Caller
from serving.api.schemas import VideoCreate
from serving.api.services import Services, ServicesDep
from serving.jobs import Wish
from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.errors import Refused
from serving.plan.price import MILLI

router = APIRouter(prefix="/v1/estimates", tags=["usage"])


class Price(BaseModel):
    """What the clip is worth. Only what is paid from credits will cost them."""

    credits: float = Field(description="to three decimals, exactly")


class Refusal(BaseModel):
    """Why the submission would be refused now."""

    code: str
    message: str
    retry_after_s: float | None


class Outlook(BaseModel):
    """A generation, as it would fare if it were submitted now."""

    object: Literal["estimate"] = "estimate"
    model: str
    seconds: str
    size: str
    steps: int
    upscale: int
    service_tier: ServiceTier
    price: Price
    gpu_seconds: float = Field(description="device time, by what was measured lately")
    upscale_seconds: float = Field(
        description="and on the upscaler, likewise: no part of `gpu_seconds`, but of `eta_seconds`"
    )
    accepted: bool
    service_class: ServiceClass | None = Field(serialization_alias="class")
    paid_from: str | None = Field(
        serialization_alias="from",
        description="allowance, relaxed (beyond it, when there is room) or credits",
    )
    queue_position: int | None = Field(description="how many jobs would go before it")
    eta_seconds: float | None
    refusal: Refusal | None


@router.post("", openapi_extra=body_docs(VideoCreate))
async def estimate(request: Request, caller: GenerateDep, services: ServicesDep) -> Outlook:
    """What would become of this body if it were sent to `POST /v1/videos` now.

    It decides as a submission does, and writes nothing: no rate, no allowance, no job.
    """
    fields = validate(VideoCreate, await read_fields(request))
    wish = Wish(fields.service_tier, fields.max_milli)
    return await _outlook(services, caller, wanted(services, fields), wish)


async def _outlook(services: Services, caller: Caller, clip: Wanted, wish: Wish) -> Outlook:
    model, spec = clip.model, clip.spec
    cost = (await services.costs.of(model)).estimate(spec)
    order = await clip_order(services, clip)
    job, place, refusal = None, None, None
    try:
        # Without a key: asked is what it would be, not what it was.
        job = (await admit(services, caller, "", order, wish, dry=True)).job
    except Refused as error:
        after_s = error.retry_after_s
        refusal = Refusal(code=error.code, message=error.message, retry_after_s=after_s)
    if job is not None:
        place = await services.queue.place_of_new(
            model.id, caller.user, job.service_class, cost.device_ms, model.classes
        )
    return Outlook(
        model=clip.alias,
        seconds=str(spec.seconds),
        size=spec.size,
        steps=spec.steps,
        upscale=spec.upscale,
        service_tier=wish.service_tier,
        price=Price(credits=order.price / MILLI),
        gpu_seconds=round(cost.device_s, 3),
        upscale_seconds=round(cost.upscale_s, 3),
        accepted=refusal is None,
        service_class=job.service_class if job else None,
        paid_from=job.paid_from if job else None,
        queue_position=place.ahead if place else None,
        eta_seconds=round((place.wait_ms + cost.total_ms) / 1000, 1) if place else None,
        refusal=refusal,
    )
