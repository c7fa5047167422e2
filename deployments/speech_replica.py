"""A replica that speaks, as Ray Serve sees it: without engine and torch, so it is light."""

from __future__ import annotations

from contextlib import AsyncExitStack

from deployments.actor import actor_id
from deployments.connections import open_backends
from deployments.hosted_worker import HostedWorker
from deployments.logs import set_up_logs
from deployments.settings import StackSettings
from deployments.speech import open_speaker
from deployments.speech_worker import DRAIN_S, SpeechWorker
from deployments.starting import process_age_s, starting
from deployments.tracing import open_tracer
from serving.jobs import JobSettings


class SpeechReplica(HostedWorker):
    """Hosts one :class:`SpeechWorker`."""

    def __init__(self, model_id: str) -> None:
        settings, replica = StackSettings.load(), actor_id()
        set_up_logs(settings.logs, role="replica", model=model_id, replica=replica)
        model = settings.speech_catalog().models[model_id]
        speaking = AsyncExitStack()
        with starting(settings, model.id, replica):
            speaker = open_speaker(model, settings.triton_url, speaking)
            backends = open_backends(settings, open_tracer(settings, "replica", replica))
            worker = SpeechWorker(
                model,
                speaker,
                backends.cell,
                backends.store,
                replica,
                JobSettings(),
                backends.tracer,
                start_s=process_age_s(),
            )
        self._host(
            worker,
            backends,
            replica=replica,
            leave_dir=settings.leave_dir,
            drain_s=lambda: DRAIN_S,
            close=speaking.aclose,
        )
