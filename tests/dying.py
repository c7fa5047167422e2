"""Clients of Redis that die, lose their connection or kill it, at any point of what they do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from deployments.redis_server import RedisServer


@dataclass
class Dying:
    """A client, and whether it came so far as to die."""

    redis: Redis
    died: bool = False


@asynccontextmanager
async def dying_after(
    server: RedisServer,
    commands: int,
    *,
    heard: bool = False,
    recovers: bool = False,
    kills: bool = False,
) -> AsyncIterator[Dying]:
    """A client that is gone once Redis has carried out so many of its commands: it sends no more
    of them, and does not hear of the last one unless ``heard``. One that ``recovers`` only loses
    its connections there, and may connect again. If it ``kills``, Redis goes there too: at once
    when it was sent the last one, or when that was heard."""
    target = Redis.from_url(server.url).connection_pool.connection_kwargs
    left = commands

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        answers, redis = await asyncio.open_connection(target["host"], target["port"])
        answering = asyncio.create_task(_relay(answers, writer))
        with suppress(asyncio.IncompleteReadError):  # the client closed it
            while True:
                command = await _one_command(reader)
                if dying.died and not recovers:
                    break
                if not dying.died:
                    if not left:
                        dying.died = True
                        if kills:
                            os.kill(server.pid, signal.SIGKILL)
                        break
                    left -= 1
                    if not left and not heard:
                        dying.died = True
                        answering.cancel()
                        await asyncio.gather(answering, return_exceptions=True)
                        redis.write(command)
                        if kills:
                            await redis.drain()
                            os.kill(server.pid, signal.SIGKILL)
                        else:
                            await answers.read(1)
                        break
                redis.write(command)
        redis.close()
        writer.close()
        await asyncio.gather(answering, return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        dying = Dying(
            Redis(
                port=proxy.sockets[0].getsockname()[1],
                password=target["password"],
                decode_responses=True,
                retry=Retry(NoBackoff(), 0),
            )
        )
        yield dying
        await dying.redis.aclose()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


async def _one_command(reader: asyncio.StreamReader) -> bytes:
    """As Redis's protocol has it: *<parts>, then $<bytes> and the bytes of each."""
    text = await reader.readuntil(b"\r\n")
    for _ in range(int(text[1:])):
        head = await reader.readuntil(b"\r\n")
        text += head + await reader.readexactly(int(head[1:]) + 2)
    return text
