"""An ingress replica as Ray Serve sees it: the API, and nothing else."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI

from deployments.actor import actor_id
from deployments.connections import open_services
from deployments.logs import log_to_stderr
from deployments.settings import StackSettings
from serving.api import ApiSettings, Services, create_app


class Ingress:
    """``pools`` are the model deployments, bound so that one application carries them all."""

    def __init__(self, pools: list[Any]) -> None:
        self._settings = StackSettings.load()
        log_to_stderr(self._settings.logs, role="ingress", replica=actor_id())

    def __serve_build_asgi_app__(self) -> FastAPI:
        def connect(api: ApiSettings) -> AbstractAsyncContextManager[Services]:
            return open_services(self._settings, api)

        return create_app(connect, ApiSettings())
