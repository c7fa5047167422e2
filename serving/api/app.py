"""The FastAPI application, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from serving.api import admin, content, errors, health, models, videos
from serving.api.limits import BodyLimit, RequestId
from serving.api.services import Services
from serving.api.settings import ApiSettings

__all__ = ["Services", "create_app"]


def create_app(
    connect: Callable[[ApiSettings], AbstractAsyncContextManager[Services]],
    settings: ApiSettings,
) -> FastAPI:
    """An application that opens its connections by ``connect`` when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with connect(settings) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Reelserve",
        summary="Video and audio generation, in the shape of OpenAI's API.",
        lifespan=lifespan,
        middleware=[
            Middleware(RequestId),
            Middleware(BodyLimit, bytes_max=settings.body_bytes_max),
        ],
    )
    errors.install(app)
    for room in (videos, content, models, admin, health):
        app.include_router(room.router)
    return app
