"""What speaks for an ingress: espeak-ng in its process, or models of Triton servers."""

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
                speakers[model.id] = await _open(model, settings.triton_url, stack)
            except ConfigError as error:
                log.warning("the model '%s' is not served: %s", model.id, error.message)
        catalog = SpeechCatalog(
            each for each in settings.speech_catalog().models.values() if each.id in speakers
        )
        yield Speech(catalog, speakers, InlineLeases(cell, holder, jobs))


async def _open(model: SpeechModel, triton_url: str | None, stack: AsyncExitStack) -> Speaker:
    # Each needs what not every machine has.
    server = model.server(triton_url)
    if server is None:
        from serving.models.espeak_speaker import EspeakSpeaker

        speaker = EspeakSpeaker()
        stack.push_async_callback(speaker.close)
        return speaker
    from serving.models.triton import TritonServer
    from serving.models.triton_speaker import SPEECH, VOICES, TritonSpeaker

    connection = TritonServer(server.url)
    stack.push_async_callback(connection.close)
    return TritonSpeaker(
        connection,
        server.sample_rate_hz,
        speech=SPEECH.model_copy(update={"model": server.model, "timeout_s": server.timeout_s}),
        voices=VOICES.model_copy(update={"model": server.voices_model}),
        speed_range=_ends(server.speed),
        patience_s=server.patience_s,
    )


def _ends(speed: FloatRange) -> tuple[float, float]:
    return speed.min, speed.max
