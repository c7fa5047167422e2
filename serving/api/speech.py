"""``/v1/audio``: speech, heard while it is made, and the voices there are."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from serving.api.admission import admit_inline
from serving.api.auth import GenerateDep, ReadDep
from serving.api.body import body_docs, read_fields, validate
from serving.api.generations import generate, speech_of, speech_order
from serving.api.idempotency import KEY_DOCS
from serving.api.quota import rate_headers
from serving.api.services import ServicesDep
from serving.api.speech_answer import SpeechAnswer
from serving.api.speech_schemas import AudioVoice, SpeechCreate, VoiceList
from serving.api.speech_work import SpeechWork
from serving.api.submission import submission
from serving.jobs import Wish
from serving.media import CODECS
from serving.plan.speech import Voice
from serving.plan.speech_model import SpeechModel

router = APIRouter(prefix="/v1/audio", tags=["audio"])


@router.post(
    "/speech",
    response_class=Response,
    responses={200: {"content": {each.media_type: {} for each in CODECS.values()}}},
    openapi_extra={**body_docs(SpeechCreate), "parameters": [KEY_DOCS]},
)
async def create(request: Request, caller: GenerateDep, services: ServicesDep) -> Response:
    """Say it. The answer begins with the first sentence, and ends with the last.

    Who leaves before the end pays for the sentences that were made. With `async: true` it is a job
    instead, and the answer that of `POST /v1/audio/generations`.
    """
    with submission(services.tracer, request) as span:
        fields = validate(SpeechCreate, await read_fields(request))
        if fields.as_job:
            return await generate(request, caller, services, span, fields)
        speech = speech_of(services)
        order, spec = await speech_order(speech, fields, at_once=True)
        lease = await admit_inline(
            services,
            speech.leases,
            caller,
            order,
            Wish(fields.service_tier, fields.max_milli),
            asked={
                "chars": len(spec.input),
                "voice": fields.voice_name,
                "format": spec.audio_format,
            },
            traceparent=span.traceparent,
        )
        span.set({"outcome": "accepted", "job_id": lease.id, "model": spec.model})
    events = fields.stream_format == "sse"
    work = SpeechWork(speech.leases, lease, speech.speakers[spec.model], spec, events=events)
    headers = rate_headers(lease.allowance, round(time.time() * 1000))
    await work.begin()
    return SpeechAnswer(work, headers, seconds_max=services.settings.speech_s_max)


@router.get("/voices")
async def voices(
    caller: ReadDep, services: ServicesDep, model: str | None = None, language: str = ""
) -> VoiceList:
    """The voices of a model, or of all; of a language, such as `en` or `en-us`, if one is named."""
    speech = speech_of(services)
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
