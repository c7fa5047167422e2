"""``/v1/audio``: speech, heard while it is made, and the voices there are."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from serving.api.auth import Caller, GenerateDep, ReadDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.quota import Grant, rate_headers
from serving.api.refusals import Asked, explained
from serving.api.services import Services, ServicesDep, Speech
from serving.api.speech_answer import SpeechAnswer
from serving.api.speech_schemas import AudioVoice, SpeechCreate, VoiceList
from serving.api.speech_work import Said, SpeechWork
from serving.api.submission import submission
from serving.jobs import InlineLease, Wish
from serving.media import CODECS
from serving.plan.errors import InvalidRequest, NotOffered, Refused
from serving.plan.sentences import sentences
from serving.plan.speech import Speaker, Voice
from serving.plan.speech_model import SpeechModel
from serving.tracing import Span

router = APIRouter(prefix="/v1/audio", tags=["audio"])
VOICES_NAMED = 20
"""So many are named to who asked for one that there is not."""


@router.post(
    "/speech",
    response_class=Response,
    responses={200: {"content": {each.media_type: {} for each in CODECS.values()}}},
    openapi_extra=body_docs(SpeechCreate),
)
async def create(request: Request, caller: GenerateDep, services: ServicesDep) -> Response:
    """Say it. The answer begins with the first sentence, and ends with the last.

    Who leaves before the end pays for the sentences that were made.
    """
    with submission(services.tracer, request) as span:
        fields = validate(SpeechCreate, await read_fields(request))
        speech = _speech(services)
        model = speech.catalog.resolve(fields.model or next(iter(speech.catalog.models)))
        speaker = speech.speakers[model.id]
        said = await _said(model, speaker, fields)
        lease = await _admit(services, speech, caller, model, fields, span)
        span.set({"outcome": "accepted", "job_id": lease.id, "model": model.id})
    work = SpeechWork(speech.leases, lease, speaker, said)
    headers = rate_headers(lease.allowance, round(time.time() * 1000))
    await work.begin()
    return SpeechAnswer(work, headers, seconds_max=services.settings.speech_s_max)


@router.get("/voices")
async def voices(
    caller: ReadDep, services: ServicesDep, model: str | None = None, language: str = ""
) -> VoiceList:
    """The voices of a model, or of all; of a language, such as `en` or `en-us`, if one is named."""
    speech = _speech(services)
    chosen = [speech.catalog.resolve(model)] if model else speech.catalog.models.values()
    found: list[AudioVoice] = []
    for each in chosen:
        have = {voice.id: voice for voice in await speech.speakers[each.id].voices()}
        named = {name: have[own] for name, own in each.speech.voices.items() if own in have}
        found += [_voice(each, name, voice, voice.id) for name, voice in named.items()]
        found += [_voice(each, own, voice, None) for own, voice in have.items()]
    wanted = language.lower()
    return VoiceList(data=[each for each in found if each.language.startswith(wanted)])


def _voice(model: SpeechModel, name: str, voice: Voice, same_as: str | None) -> AudioVoice:
    return AudioVoice(
        id=name,
        model=model.id,
        name=voice.name,
        language=voice.language,
        gender=voice.gender,
        same_as=same_as,
    )


def _speech(services: Services) -> Speech:
    if services.speech is None or not services.speech.catalog.models:
        raise NotOffered("Nothing speaks here: the operator has set up no such model.")
    return services.speech


async def _said(model: SpeechModel, speaker: Speaker, fields: SpeechCreate) -> Said:
    """What a body asks for, held to the model; :class:`InvalidRequest` names the field."""
    limits, text = model.speech, fields.input
    if len(text) > limits.input_chars_max:
        raise InvalidRequest(
            f"'input' has {len(text)} characters; the model '{model.id}' takes at most "
            f"{limits.input_chars_max}.",
            code="string_too_long",
            param="input",
        )
    pieces = sentences(text, limits.sentence_chars_max)
    if not pieces:
        raise InvalidRequest(
            "'input' has nothing to say: it needs a letter or a digit.", param="input"
        )
    if fields.instructions and not limits.instructions:
        raise InvalidRequest(
            f"The model '{model.id}' cannot be told how to speak; leave 'instructions' out.",
            code="unsupported_parameter",
            param="instructions",
        )
    speed = limits.speed.default if fields.speed is None else fields.speed
    if not limits.speed.min <= speed <= limits.speed.max:
        raise InvalidRequest(
            f"'speed' must be from {limits.speed.min:g} to {limits.speed.max:g}, not {speed:g}.",
            code="out_of_range",
            param="speed",
        )
    name = fields.voice_name or limits.voice
    return Said(
        sentences=pieces,
        chars=len(text),
        voice=_known(model, name, {each.id: each for each in await speaker.voices()}),
        speed=speed,
        instructions=fields.instructions or "",
        audio_format=fields.response_format,
        events=fields.stream_format == "sse",
        loudness_lufs=fields.loudness,
    )


def _known(model: SpeechModel, name: str, have: Mapping[str, Voice]) -> str:
    """The model's own id of a voice."""
    own = model.speech.voices.get(name, name)
    if own in have:
        return own
    some = ", ".join([*model.speech.voices, *sorted(have)][:VOICES_NAMED])
    raise InvalidRequest(
        f"The model '{model.id}' has no voice '{name[:64]}'. It has {some}; "
        "GET /v1/audio/voices lists all.",
        code="voice_not_found",
        param="voice",
    )


async def _admit(
    services: Services,
    speech: Speech,
    caller: Caller,
    model: SpeechModel,
    fields: SpeechCreate,
    span: Span,
) -> InlineLease:
    """As a video is admitted, and at once; :class:`NotPermitted`, or :class:`Refused` in words."""
    grant = Grant.of(caller.tier, services.tiers.current)
    grant.tier.allows(model.id, model.aliases, None)
    now_ms = round(time.time() * 1000)
    limits = grant.limits(model, now_ms)
    chars = len(fields.input)
    try:
        return await speech.leases.grant(
            f"audio_{secrets.token_hex(16)}",
            user=caller.user,
            pool=model.id,
            alias=fields.model or model.id,
            asked={"chars": chars, "voice": fields.voice_name, "format": fields.response_format},
            est_device_ms=model.device_ms(chars),
            price=model.milli_credits(chars),
            limits=limits,
            wish=Wish(fields.service_tier, fields.max_milli),
            traceparent=span.traceparent,
        )
    except Refused as error:
        shop = services.provider is not None
        est_ms = model.device_ms(chars)
        asked = Asked(grant, limits, model, est_ms, fields.service_tier, shop)
        raise explained(error, asked, now_ms) from None
