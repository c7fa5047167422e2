"""Work of the catalog that model servers do, of which we have no replicas: pools that somebody else
scales, by what the autoscaler says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from serving.plan.catalog import Model, ScalingPolicy
from serving.plan.classes import ServiceClass
from serving.plan.clip import UPSCALE
from serving.plan.speech_model import SpeechModel

REQUEST_CHARS = 1000
"""Of a text of which only the request is seen: what its price is by."""


class ModelServer(Protocol):
    """A model of a server that is not ours, for whoever asks whether it is there."""

    @property
    def id(self) -> str:
        """What it is called in answers: of those with the same one, all have to be there."""

    async def ready(self) -> bool:
        """Whether it would answer now. One that was never held to what the catalog says of it is
        held to it first: :class:`ConfigError` with the differences, a retryable
        :class:`ServiceUnavailable` while it is away."""


@dataclass(frozen=True)
class ServedPool:
    """A model of a server, whose catalog entry says how it scales.

    ``model`` is its name on the server at ``url`` (gRPC), where a request takes ``request_s`` by
    the catalog. ``leased``: requests are jobs of its own; else they are a part of other pools'.
    ``objectives_s`` is by class how long one may wait; None is no objective.
    """

    id: str
    model: str
    url: str
    request_s: float
    scaling: ScalingPolicy
    leased: bool
    objectives_s: Mapping[str, float | None]


def served_pools(
    models: Iterable[Model], speech: Iterable[SpeechModel], triton_url: str | None
) -> dict[str, ServedPool]:
    """By id: what speaks under its own, an upscaler as ``triton/upscale``, as no model is called.
    Where several entries name the same upscaler, the first that says how it scales does."""
    found: dict[str, ServedPool] = {}
    for pool in (*(_speaking(each, triton_url) for each in speech), *map(_upscaling, models)):
        if pool is not None:
            found.setdefault(pool.id, pool)
    return found


def _speaking(model: SpeechModel, triton_url: str | None) -> ServedPool | None:
    seat = model.seat
    url = seat.url or triton_url
    if url is None or model.scaling is None:
        return None
    return ServedPool(
        id=model.id,
        model=seat.model,
        url=url,
        request_s=model.device_ms(REQUEST_CHARS) / 1000,
        scaling=model.scaling,
        leased=True,
        objectives_s={str(name): each.first_step_s for name, each in model.classes.items()},
    )


def _upscaling(model: Model) -> ServedPool | None:
    seat = model.upscaler
    if seat is None or seat.url is None or seat.scaling is None:
        return None
    width, height = model.video.render_size(model.video.default_size)
    pixels = seat.frames * UPSCALE**2 * width * height
    return ServedPool(
        id=seat.pool_id,
        model=seat.model,
        url=seat.url,
        request_s=seat.s_per_mpixel * pixels / 1e6,
        scaling=seat.scaling,
        leased=False,
        objectives_s={str(ServiceClass.STANDARD): seat.wait_s},
    )
