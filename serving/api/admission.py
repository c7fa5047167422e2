"""From a parsed request to an admitted job: what is asked for, the caller's tier, its limits, and
the queue's word."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serving.api.keys import Caller
from serving.api.quota import Grant
from serving.api.refusals import Asked, explained
from serving.api.schemas import VideoCreate
from serving.api.services import Services
from serving.jobs import Admission, InlineLease, InlineLeases, Kind, Limits, Wish, new_id
from serving.plan.catalog import Model
from serving.plan.classes import Offered
from serving.plan.clip import SEED_MAX, ClipSpec
from serving.plan.errors import InvalidRequest, Refused
from serving.plan.price import price
from serving.plan.spec import Spec


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


@dataclass(frozen=True)
class Order:
    """What is asked for of a model, what it takes, and what it costs (milli-credits). A tier may
    leave out a ``size``."""

    model: Offered
    alias: str
    spec: Spec
    est_device_ms: int
    price: int
    size: str | None = None


async def clip_order(services: Services, clip: Wanted) -> Order:
    """A clip, at what was learned of its model's work."""
    model, spec = clip.model, clip.spec
    est_device_ms = (await services.costs.of(model)).estimate(spec).device_ms
    return Order(model, clip.alias, spec, est_device_ms, price(model, spec), spec.size)


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
    order: Order,
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
    with _within_the_tier(services, caller, order, wish) as limits:
        return await services.queue.submit(
            job_id,
            user=caller.user,
            alias=order.alias,
            spec=order.spec,
            est_device_ms=order.est_device_ms,
            price=order.price,
            limits=limits,
            wish=wish,
            traceparent=traceparent,
            dry=dry,
        )


async def admit_inline(
    services: Services,
    leases: InlineLeases,
    caller: Caller,
    order: Order,
    wish: Wish,
    *,
    asked: Mapping[str, Any],
    traceparent: str = "",
) -> InlineLease:
    """Accept what is to be heard while it is made, as :func:`admit` does, with its lease. ``asked``
    is what is kept of it, as JSON values."""
    with _within_the_tier(services, caller, order, wish) as limits:
        return await leases.grant(
            new_id(Kind.AUDIO),
            user=caller.user,
            pool=order.model.id,
            alias=order.alias,
            asked=asked,
            est_device_ms=order.est_device_ms,
            price=order.price,
            limits=limits,
            wish=wish,
            traceparent=traceparent,
        )


@contextmanager
def _within_the_tier(
    services: Services, caller: Caller, order: Order, wish: Wish
) -> Iterator[Limits]:
    """The caller's limits; what is refused in here says in words what can be done."""
    grant, model = Grant.of(caller.tier, services.tiers.current), order.model
    grant.tier.allows(model.id, model.aliases, order.size)
    now_ms = round(time.time() * 1000)
    limits = grant.limits(model, now_ms)
    try:
        yield limits
    except Refused as error:
        shop = services.provider is not None
        asked = Asked(grant, limits, model, order.est_device_ms, wish.service_tier, shop)
        raise explained(error, asked, now_ms) from None
