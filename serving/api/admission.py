"""From a parsed request to an admitted job: what is asked for, the caller's tier, its limits, and
the queue's word."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from serving.api.keys import Caller
from serving.api.quota import Grant
from serving.api.refusals import Asked, explained
from serving.api.schemas import VideoCreate
from serving.api.services import Services
from serving.jobs import Admission, Wish
from serving.plan.catalog import Model
from serving.plan.clip import SEED_MAX, ClipSpec
from serving.plan.errors import InvalidRequest, Refused
from serving.plan.price import price


@dataclass(frozen=True)
class Wanted:
    """A clip of a model, under the name that the caller used for it."""

    model: Model
    alias: str
    spec: ClipSpec


def wanted(services: Services, fields: VideoCreate) -> Wanted:
    """What a body asks for, with every default filled in; :class:`InvalidRequest` for what the
    model cannot make."""
    alias = fields.model or next(iter(services.catalog.models))
    model = services.catalog.resolve(alias)
    _check_text_is_enough(model)
    seed = fields.seed if fields.seed is not None else secrets.randbelow(SEED_MAX)
    asked = fields.model_dump(exclude={"model", "seed", "service_tier", "max_credits"})
    return Wanted(model, alias, ClipSpec.resolve(model, **asked, seed=seed))


def _check_text_is_enough(model: Model) -> None:
    """:class:`InvalidRequest` for a model that must be given pictures: requests carry none yet."""
    for name, need in model.video.inputs.items():
        if need == "required":
            raise InvalidRequest(
                f"The model '{model.id}' starts from a {name.replace('_', ' ')}, which a request "
                "cannot carry yet. Ask for a text-to-video model.",
                code="unsupported_model",
                param="model",
            )


async def admit(
    services: Services,
    caller: Caller,
    job_id: str,
    clip: Wanted,
    wish: Wish,
    *,
    traceparent: str = "",
    dry: bool = False,
) -> Admission:
    """Accept the job, or find the one this request made before. If ``dry``, only say whether it
    would be accepted, and how.

    Raises :class:`NotPermitted` for what the tier does not include, :class:`Refused` with a reason
    in words, or :class:`IdempotencyMismatch`; nothing is written then, but that a submission was
    made.
    """
    model, spec = clip.model, clip.spec
    grant = Grant.of(caller.tier, services.tiers.current)
    grant.tier.allows(model.id, model.aliases, spec.size)
    now_ms = round(time.time() * 1000)
    limits = grant.limits(model, now_ms)
    est_device_ms = (await services.costs.of(model)).estimate(spec).device_ms
    try:
        return await services.queue.submit(
            job_id,
            user=caller.user,
            alias=clip.alias,
            spec=spec,
            est_device_ms=est_device_ms,
            price=price(model, spec),
            limits=limits,
            wish=wish,
            traceparent=traceparent,
            dry=dry,
        )
    except Refused as error:
        shop = services.provider is not None
        asked = Asked(grant, limits, model, est_device_ms, wish.service_tier, shop)
        raise explained(error, asked, now_ms) from None
