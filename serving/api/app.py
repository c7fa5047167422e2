"""The FastAPI application, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serving.api import (
    admin,
    autoscale,
    credits,
    errors,
    estimates,
    generations,
    health,
    models,
    pages,
    queue,
    sandbox,
    shop,
    speech,
    tiers,
    usage,
    videos,
)
from serving.api.limits import BodyLimit, RequestId
from serving.api.quota import RATE_HEADERS
from serving.api.services import Services
from serving.api.settings import ApiSettings


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

    middleware = [
        Middleware(RequestId),
        Middleware(BodyLimit, bytes_max=settings.body_bytes_max),
    ]
    if settings.cors_origins:
        # Outermost, so that a page can read errors too.
        middleware.insert(0, _cors(settings.cors_origins))
    app = FastAPI(
        title="Reelserve",
        summary="Video and audio generation, in the shape of OpenAI's API.",
        lifespan=lifespan,
        middleware=middleware,
    )
    errors.install(app)
    operation = (admin, queue, autoscale, tiers, health)
    for room in (videos, speech, generations, models, estimates, usage, credits, shop, *operation):
        app.include_router(room.router)
    app.include_router(credits.operation)
    app.include_router(shop.webhooks)
    app.include_router(pages.router)
    app.include_router(sandbox.router)
    return app


def _cors(origins: list[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        # The SDKs run in browsers too, with a dozen x-stainless-… headers.
        allow_headers=["*"],
        expose_headers=[
            "accept-ranges",
            "content-range",
            "etag",
            "idempotent-replayed",
            "openai-poll-after-ms",
            "retry-after",
            "retry-after-ms",
            "x-request-id",
            "x-should-retry",
            *RATE_HEADERS,
        ],
        max_age=3600,
    )
