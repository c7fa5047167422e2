"""Connections a process of the stack opens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from autoscale.settings import AutoscaleSettings
from deployments.housekeeping import keep_house
from deployments.patience import end
from deployments.payments import open_shop
from deployments.settings import StackSettings
from deployments.speech import open_speech
from quota.packs import PackFile
from quota.payments.payments import Payments
from quota.redis_ledger import RedisLedger
from quota.settings import QuotaSettings
from quota.tiers import TierFile
from serving.api import ApiSettings, Keys, Services, UrlSigner, Users
from serving.jobs import CELL, Cell, CostReader, CostStore, Decisions, JobQueue, JobSettings, Upkeep
from serving.media import ArtifactStore, open_store
from serving.plan.catalog import Catalog
from serving.plan.classes import Offered
from serving.plan.errors import ConfigError
from serving.plan.served import ModelServer
from serving.tracing import NO_TRACER, Tracer

REDIS_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 128
"""Of one process: a crowd waits for a connection rather than exhaust Redis's 10,000."""
REDIS_RETRIES = 2
"""Scripts may be repeated with the same arguments, so the client may retry any of them."""


def open_redis(settings: StackSettings) -> Redis:
    """A client for the stack's Redis. It connects at the first command."""
    if settings.redis_url is None:
        raise ConfigError("REELSERVE_REDIS_URL is not set and no stack started a Redis")
    pool = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=True,
        max_connections=CONNECTIONS_MAX,
        timeout=REDIS_TIMEOUT_S,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), REDIS_RETRIES),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    return Redis.from_pool(pool)


@dataclass(frozen=True)
class Backends:
    """What both kinds of replica work with."""

    redis: Redis
    cell: Cell
    store: ArtifactStore
    tracer: Tracer

    async def close(self) -> None:
        await asyncio.to_thread(self.tracer.close)
        await self.redis.aclose()


def open_backends(settings: StackSettings, tracer: Tracer) -> Backends:
    redis = open_redis(settings)
    return Backends(redis, Cell(redis), open_store(settings.store_url), tracer)


def open_upscalers(catalog: Catalog, servers: AsyncExitStack) -> list[ModelServer]:
    """Each model of a server that models of the catalog are upscaled by, as long as ``servers`` is
    open. Whoever upscales has connections of its own; these are to ask whether they are there."""
    seats = [model.upscaler for model in catalog.models.values() if model.upscales]
    upscalers: dict[tuple[str | None, str], ModelServer] = {}
    for seat in seats:
        if seat is not None and (seat.url, seat.model) not in upscalers:
            # Not every stack has a model server, nor needs its client.
            from serving.models.triton_upscaler import TritonUpscaler

            upscaler = TritonUpscaler(seat)
            servers.push_async_callback(upscaler.close)
            upscalers[seat.url, seat.model] = upscaler
    return list(upscalers.values())


@asynccontextmanager
async def open_services(
    settings: StackSettings, api: ApiSettings, tracer: Tracer = NO_TRACER
) -> AsyncIterator[Services]:
    """What the API works with, for the life of one ingress replica, and its housekeeping. It
    closes the tracer at the end."""
    backends = open_backends(settings, tracer)
    provider = open_shop(settings, backends.cell, api.public_url)
    jobs = JobSettings()
    await backends.cell.check_schema()
    queue = JobQueue(backends.cell, jobs)
    quota = QuotaSettings()
    tiers, packs = TierFile(quota.tiers_path), PackFile(quota.packs_path)
    catalog = settings.catalog()
    servers = AsyncExitStack()
    holder = f"ingress-{secrets.token_hex(8)}"
    speech = await servers.enter_async_context(open_speech(settings, backends.cell, jobs, holder))
    models: list[Offered] = [*catalog.models.values(), *speech.catalog.models.values()]
    housekeeping = asyncio.create_task(
        keep_house(Upkeep(backends.cell, jobs), backends.store, queue, tiers, models),
        name="housekeeping",
    )
    try:
        yield Services(
            queue=queue,
            store=backends.store,
            keys=Keys(backends.redis, CELL, settings.admin_key),
            ledger=RedisLedger(backends.cell),
            users=Users(backends.redis, CELL, lambda: tiers.current.tiers),
            signer=UrlSigner(backends.redis, CELL, api.content_url_s),
            tiers=tiers,
            packs=packs,
            payments=Payments(backends.cell),
            provider=provider,
            quota=quota,
            catalog=catalog,
            settings=api,
            costs=CostReader(CostStore(backends.cell)),
            decisions=Decisions(backends.cell),
            autoscaling=AutoscaleSettings().enabled,
            tracer=backends.tracer,
            speech=speech,
            served=settings.served_pools(),
            upscalers=open_upscalers(catalog, servers),
        )
    finally:
        await end(housekeeping)
        await servers.aclose()
        if provider is not None:
            await provider.aclose()
        await backends.close()
