"""An ingress replica as Ray Serve sees it: the API, and nothing else."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI

from deployments.actor import actor_id
from deployments.connections import open_services
from deployments.logs import set_up_logs
from deployments.settings import StackSettings
from deployments.tracing import open_tracer
from serving.api import ApiSettings, Services, create_app


class Ingress:
    """``pools`` are the model deployments, bound so that one application carries them all."""

    def __init__(self, pools: list[Any]) -> None:
        self._settings = StackSettings.load()
        self._replica = actor_id()
        set_up_logs(self._settings.logs, role="ingress", replica=self._replica)

    def __serve_build_asgi_app__(self) -> FastAPI:
        def connect(api: ApiSettings) -> AbstractAsyncContextManager[Services]:
            tracer = open_tracer(self._settings, "ingress", self._replica)
            return open_services(self._settings, api, tracer)

        return create_app(connect, ApiSettings())
