"""A cell: one Redis, the names of its keys, and the scripts that change them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from serving.jobs.job import Job
from serving.plan.errors import ConfigError, GenerationError, ServiceUnavailable

log = logging.getLogger(__name__)

CELL = "{reelserve}"
SCHEMA = "6"
"""Version of the keys and scripts. A change that old processes cannot live with raises it."""

REFUSALS = re.compile(r"(^|-)(OOM|MISCONF|READONLY|LOADING|BUSY|NOREPLICAS|MASTERDOWN) ")
"""How an error begins that says Redis will not write now; from within a script it is quoted, and
for some the client has a class instead. Redis refuses a script's first write or none, so nothing is
half written."""

QUEUE_SCRIPTS = (
    "submit",
    "submit_paid",
    "submit_inline",
    "cancel",
    "delete",
    "place",
    "usage",
    "top",
    "observe",
    "explain",
    "lease",
    "heartbeat",
    "checkpoint",
    "preview",
    "resume",
    "yield",
    "finish",
    "announce",
    "start_failed",
    "tally",
    "retire",
    "learn",
    "decide",
    "decided",
    "tidy",
    "recover",
)
LEDGER_SCRIPTS = (
    "grant",
    "hold",
    "capture",
    "release",
    "reverse",
    "take",
    "expire",
    "balance",
    "archive",
)
PAYMENT_SCRIPTS = ("note_checkout", "apply_event")
SCRIPTS = {
    **dict.fromkeys(QUEUE_SCRIPTS, "serving.jobs"),
    **dict.fromkeys(LEDGER_SCRIPTS + PAYMENT_SCRIPTS, "quota"),
}
"""Each with the room it belongs to."""


FRAGMENTS = (
    ("serving.jobs", "_rank"),
    ("serving.jobs", "_fair"),
    ("serving.jobs", "_keys"),
    ("quota", "_limits"),
    ("quota", "_ledger"),
    ("quota", "_settlement"),
    ("quota", "_payments"),
    ("serving.jobs", "_measures"),
    ("serving.jobs", "_lines"),
    ("serving.jobs", "_states"),
    ("serving.jobs", "_choice"),
    ("serving.jobs", "_admission"),
    ("serving.jobs", "_inline"),
)
"""What scripts begin with: each room's own, from what knows nothing to what builds on it."""


FILES = {"submit_paid": "submit", "submit_inline": "submit"}
"""Where a script is, if it has no file of its own."""
LEAN = {"submit": {"_ledger", "_inline"}, "submit_paid": {"_inline"}}
"""What a script does without: the ledger where credits cannot pay, leases where jobs wait."""
DEFINITION = re.compile(r"local (?:function )?(\w+(?:, \w+)*)")


@cache
def source(script: str) -> str:
    """A script's text, behind those definitions of the fragments that it uses.

    No others: Redis makes all functions of a script anew at each call, and looks through those of
    all scripts whenever it collects garbage, which a call now and then has to wait for.
    """
    text = _read(SCRIPTS[script], FILES.get(script, script))
    for room, part in reversed(FRAGMENTS):
        if part in LEAN.get(script, ()):
            continue
        for piece, named in reversed(_definitions(room, part)):
            if named.search(text):
                text = piece + text
    return text


@cache
def _definitions(room: str, part: str) -> list[tuple[str, re.Pattern[str]]]:
    """Of a fragment, each with what finds its names; but not as a key's or a field's."""
    # Whatever is outermost begins a line, and says "local".
    pieces = re.split("^(?=local )", _read(room, part), flags=re.MULTILINE)
    names = ((piece, DEFINITION.match(piece)) for piece in pieces)
    return [
        (piece, re.compile(rf"(?<!['.:])\b({match[1].replace(', ', '|')})\b"))
        for piece, match in names
        if match
    ]


def _read(room: str, name: str) -> str:
    """Without its comments, which name what the code does not use."""
    text = (files(room) / "lua" / f"{name}.lua").read_text()
    return re.sub("^ *--.*\n", "", text, flags=re.MULTILINE)


class Cell:
    """Over a Redis client that decodes responses.

    Every script may be repeated with the same arguments after a lost answer: what it did is not
    done twice, save that an event may be counted twice. The client library loads one again when
    Redis forgot it: a restart empties its script cache.
    """

    def __init__(self, redis: Redis, name: str = CELL) -> None:
        # Its annotations say bytes or str; a client that decodes responses gives str.
        self.redis: Any = redis
        self.name = name
        self._scripts: dict[str, AsyncScript] = {
            script: redis.register_script(source(script)) for script in SCRIPTS
        }

    def key(self, *parts: str) -> str:
        return ":".join((self.name, *parts))

    async def run(self, script: str, *args: str | int) -> Any:
        """A script of :data:`SCRIPTS`; :class:`ServiceUnavailable` if Redis does not answer."""
        async with self.answers():
            return await self._scripts[script](keys=[self.name], args=list(args))

    async def run_for_job(self, script: str, *args: str | int) -> Job | None:
        """A script that answers with a job's hash, or with nothing."""
        flat = await self.run(script, *args)
        return Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    @asynccontextmanager
    async def answers(self) -> AsyncIterator[None]:
        """Around commands: a Redis that is away becomes :class:`ServiceUnavailable`."""
        try:
            yield
        except ResponseError as error:
            # What Redis will not do now it may do later; anything else is a defect of ours.
            refused = isinstance(error, OutOfMemoryError | ReadOnlyError)
            if not refused and not REFUSALS.search(str(error)):
                raise
            log.warning("redis: %s", error)
            raise ServiceUnavailable(
                "The job store cannot write now. Try again shortly."
            ) from error
        except RedisError as error:
            log.warning("redis: %s: %s", type(error).__name__, error)
            raise ServiceUnavailable("The job store does not answer. Try again shortly.") from error

    async def check_schema(self) -> None:
        """Claim an empty Redis; :class:`ConfigError` if it is laid out for another version."""
        async with self.answers():
            if not await self.redis.exists(self.key("seq")):
                await self.redis.set(self.key("schema"), SCHEMA, nx=True)
            found = await self.redis.get(self.key("schema"))
        if found != SCHEMA:
            raise ConfigError(
                f"this Redis holds data of schema {found} and this version reads schema {SCHEMA}; "
                "finish the upgrade, or use another Redis"
            )


def error_json(error: GenerationError) -> str:
    """An error as a job's hash keeps it."""
    return json.dumps({"code": error.code, "message": error.message}, sort_keys=True)
