"""What speaks for an ingress or a replica: espeak-ng in its process, or models of Triton servers.

A neural voice never speaks in an ingress, which answers everybody meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from deployments.settings import StackSettings
from serving.api.services import Speech
from serving.jobs import Cell, InlineLeases, JobSettings
from serving.plan.catalog import FloatRange
from serving.plan.errors import ConfigError
from serving.plan.speech import Speaker
from serving.plan.speech_model import SpeechCatalog, SpeechModel

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_speech(
    settings: StackSettings, cell: Cell, jobs: JobSettings, holder: str
) -> AsyncIterator[Speech]:
    """For the life of an ingress, ``holder``. A model that cannot speak on this machine is left
    out, and the log says why; one whose server is away, or is another than the catalog says, is
    not."""
    speakers: dict[str, Speaker] = {}
    async with AsyncExitStack() as stack:
        for model in settings.speech_catalog().models.values():
            try:
                speakers[model.id] = open_speaker(model, settings.triton_url, stack)
            except ConfigError as error:
                log.warning("the model '%s' is not served: %s", model.id, error.message)
        catalog = SpeechCatalog(
            each for each in settings.speech_catalog().models.values() if each.id in speakers
        )
        yield Speech(catalog, speakers, InlineLeases(cell, holder, jobs))


def open_speaker(model: SpeechModel, triton_url: str | None, stack: AsyncExitStack) -> Speaker:
    """What speaks for ``model`` as long as ``stack`` is open; :class:`ConfigError` where nothing on
    this machine can. ``triton_url``: the stack's server, if it has one."""
    # Each needs what not every machine has.
    seat = model.seat
    url = seat.url or triton_url
    if url is None and model.family == "espeak":
        from serving.models.espeak import espeak
        from serving.models.local_speaker import LocalSpeaker

        speaker = LocalSpeaker(espeak())
        stack.push_async_callback(speaker.close)
        return speaker
    if url is None:
        raise ConfigError(
            "a Triton server speaks for it: name one in REELSERVE_TRITON_URL, or in its entry "
            "under triton.url"
        )
    from serving.models.triton import TritonServer
    from serving.models.triton_speaker import SPEECH, VOICES, TritonSpeaker

    connection = TritonServer(url)
    stack.push_async_callback(connection.close)
    return TritonSpeaker(
        connection,
        seat.sample_rate_hz,
        speech=SPEECH.model_copy(update={"model": seat.model, "timeout_s": seat.timeout_s}),
        voices=model.own_voices or VOICES.model_copy(update={"model": seat.voices_model}),
        speed_range=_ends(seat.speed),
        instructed=model.speech.instructions,
        patience_s=seat.patience_s,
    )


def those_that_speak(settings: StackSettings) -> list[str]:
    """Ids of the models of the catalog that can speak on this machine."""
    return [
        model.id
        for model in settings.speech_catalog().models.values()
        if model.seat.url or settings.triton_url or (model.family == "espeak" and _has_espeak())
    ]


def _has_espeak() -> bool:
    from serving.models.espeak import find_library

    try:
        find_library()
    except ConfigError as error:
        log.warning("espeak-ng: %s", error.message)
        return False
    return True


def _ends(speed: FloatRange) -> tuple[float, float]:
    return speed.min, speed.max
