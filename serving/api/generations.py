"""``/v1/audio/generations``: texts that are spoken, as :mod:`serving.api.resource` has them."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response

from serving.api.admission import Order
from serving.api.auth import Caller, GenerateDep, ReadDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.idempotency import KEY_DOCS
from serving.api.resource import AccessDep, PageDep, Resource
from serving.api.schemas import Deleted, Listing
from serving.api.services import Services, ServicesDep, Speech
from serving.api.speech_schemas import Generation, GenerationCreate, SpeechCreate, generation_of
from serving.api.submission import submission
from serving.jobs import Job, Kind
from serving.plan.errors import InvalidRequest, NotOffered
from serving.plan.speech_model import SpeechModel
from serving.plan.speech_spec import SpeechSpec
from serving.tracing import Span


async def _solo_ms(services: Services, job: Job) -> int:
    return job.est_device_ms


GENERATIONS = Resource(
    Kind.AUDIO, "audio.generation", "/v1/audio/generations", generation_of, _solo_ms
)
router = APIRouter(prefix=GENERATIONS.path, tags=["audio"])


@router.post(
    "",
    response_model=Generation,
    openapi_extra={**body_docs(GenerationCreate), "parameters": [KEY_DOCS]},
)
async def create(request: Request, caller: GenerateDep, services: ServicesDep) -> Response:
    """Submit a text. It is durable once this answers, and longer than what is heard at once.

    Under an `Idempotency-Key` the same request may be sent again for a day: it is said once and has
    the first one's answer.
    """
    with submission(services.tracer, request) as span:
        fields = validate(GenerationCreate, await read_fields(request))
        return await generate(request, caller, services, span, fields)


@router.get("")
async def index(
    request: Request, caller: ReadDep, services: ServicesDep, page: PageDep
) -> Listing[Generation]:
    """The caller's generations, a page at a time; ``last_id`` is the next page's ``after``."""
    return await GENERATIONS.list(request, caller, services, page)


@router.get("/{generation_id}")
async def retrieve(
    generation_id: str,
    request: Request,
    response: Response,
    caller: ReadDep,
    services: ServicesDep,
) -> Generation:
    """A generation's state. One that failed or was cancelled answers 200 and says so."""
    return await GENERATIONS.retrieve(generation_id, request, response, caller, services)


@router.post("/{generation_id}/cancel")
async def cancel(
    generation_id: str, request: Request, caller: GenerateDep, services: ServicesDep
) -> Generation:
    """Stop it: one that waits at once, one that is spoken at its next sentence. Safe to repeat."""
    return await GENERATIONS.cancel(generation_id, request, caller, services)


@router.delete("/{generation_id}")
async def delete(generation_id: str, caller: GenerateDep, services: ServicesDep) -> Deleted:
    """Remove a generation and its file. One that is still active is cancelled."""
    return await GENERATIONS.delete(generation_id, caller, services)


@router.head("/{generation_id}/content", response_model=None, include_in_schema=False)
@router.get("/{generation_id}/content", response_model=None)
async def content(
    generation_id: str,
    request: Request,
    services: ServicesDep,
    access: AccessDep,
    variant: Literal["audio"] = "audio",
) -> Response:
    """The sound, in the format that was asked for, whole or by ``Range``.

    With a key, or with the ``expires`` and ``signature`` of the generation's URL.
    """
    return await GENERATIONS.content(generation_id, variant, request, services, access)


async def generate(
    request: Request, caller: Caller, services: Services, span: Span, fields: GenerationCreate
) -> Response:
    """Accept a text as a job."""
    if isinstance(fields, SpeechCreate) and fields.stream_format == "sse":
        raise InvalidRequest(
            "'stream_format' sse is for what is heard at once; with async: true there is a file.",
            param="stream_format",
        )
    order, _ = await speech_order(speech_of(services), fields, at_once=False)
    return await GENERATIONS.submit(request, caller, services, span, fields, order)


def speech_of(services: Services) -> Speech:
    """What speaks; :class:`NotOffered` if nothing does."""
    if services.speech is None or not services.speech.catalog.models:
        raise NotOffered("Nothing speaks here: the operator has set up no such model.")
    return services.speech


async def speech_order(
    speech: Speech, fields: GenerationCreate, *, at_once: bool
) -> tuple[Order, SpeechSpec]:
    """What a body asks for, held to the model; :class:`InvalidRequest` names the field. What is
    heard ``at_once`` is to be shorter than what waits."""
    alias = fields.model or next(iter(speech.catalog.models))
    model = speech.catalog.resolve(alias)
    _check_length(model, len(fields.input), at_once=at_once)
    spec = SpeechSpec.resolve(
        model,
        input=fields.input,
        voice=fields.voice_name,
        speed=fields.speed,
        audio_format=fields.response_format,
        loudness_lufs=fields.loudness,
        instructions=fields.instructions,
        has=await speech.speakers[model.id].voices(),
    )
    chars = len(spec.input)
    return Order(model, alias, spec, model.device_ms(chars), model.milli_credits(chars)), spec


def _check_length(model: SpeechModel, chars: int, *, at_once: bool) -> None:
    limits = model.speech
    most = limits.input_chars_max if at_once else limits.job_chars_max
    if chars <= most:
        return
    said = f"'input' has {chars} characters; the model '{model.id}' takes at most {most}"
    raise InvalidRequest(
        f"{said} that are heard at once. With async: true, or at POST {GENERATIONS.path}, it takes "
        f"up to {limits.job_chars_max}."
        if at_once
        else f"{said}.",
        code="string_too_long",
        param="input",
    )
