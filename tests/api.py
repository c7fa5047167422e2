"""What tests of the API share: its services over a real Redis and store, and a client of it."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis

from deployments.connections import open_services
from deployments.settings import StackSettings
from quota.packs import PackFile
from quota.payments.payments import Payments
from quota.payments.provider import Provider
from quota.redis_ledger import RedisLedger
from quota.settings import QuotaSettings
from quota.tiers import TierFile
from serving.api import ApiSettings, Keys, Services, UrlSigner, Users, create_app
from serving.api.keys import DEFAULT_SCOPES, Scope
from serving.jobs import CELL, Cell, CostReader, CostStore, Decisions, JobQueue, JobSettings
from serving.media import ArtifactStore
from serving.plan.catalog import Catalog, Model
from serving.tracing import NO_TRACER, Tracer

ADMIN = "the-admin-key"


def services_over(
    redis: Redis,
    store: ArtifactStore,
    model: Model,
    *,
    tiers_file: Path | None = None,
    packs_file: Path | None = None,
    provider: Provider | None = None,
    jobs: JobSettings | None = None,
    tracer: Tracer = NO_TRACER,
) -> Services:
    """Those of one ingress; by the tiers and packs that come with the code, if no file is given."""
    quota = QuotaSettings(tiers_file=tiers_file, packs_file=packs_file)
    tiers = TierFile(quota.tiers_path)
    return Services(
        queue=JobQueue(Cell(redis), jobs or JobSettings(queue_max=5)),
        store=store,
        keys=Keys(redis, CELL, SecretStr(ADMIN)),
        ledger=RedisLedger(Cell(redis)),
        users=Users(redis, CELL, lambda: tiers.current.tiers),
        signer=UrlSigner(redis, CELL, 60),
        tiers=tiers,
        packs=PackFile(quota.packs_path),
        payments=Payments(Cell(redis)),
        provider=provider,
        quota=quota,
        catalog=Catalog([model]),
        settings=ApiSettings(body_bytes_max=100_000, cors_origins=["https://front.example"]),
        costs=CostReader(CostStore(Cell(redis))),
        decisions=Decisions(Cell(redis)),
        autoscaling=True,
        tracer=tracer,
    )


def app_over(services: Services) -> FastAPI:
    """The application with these services, which outlive it."""

    def connect(settings: ApiSettings) -> AbstractAsyncContextManager[Services]:
        @asynccontextmanager
        async def open_them() -> AsyncIterator[Services]:
            yield services

        return open_them()

    return create_app(connect, services.settings)


@asynccontextmanager
async def serving(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    app = app_over(services)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@asynccontextmanager
async def as_user(
    services: Services, user: str = "ann", **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a new key of this user, which may also act for end users."""
    _, key = await services.keys.create(user, {*DEFAULT_SCOPES, Scope.ACT_AS})
    async with serving(services) as client:
        client.headers.update({"authorization": f"Bearer {key}", **headers})
        yield client


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error in an answer that must have this status, in its whole envelope."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@contextmanager
def running_ingress(settings: StackSettings) -> Iterator[str]:
    """The URL of an ingress as production opens it, on a socket, without Ray around it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        ours = settings.model_copy(update={"port": listening.getsockname()[1]})
        app = create_app(lambda api: open_services(ours, api), ApiSettings())
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = Thread(target=server.run, args=[[listening]], name="ingress")
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the ingress did not start"
                time.sleep(0.01)
            yield ours.url
        finally:
            server.should_exit = True
            thread.join()
