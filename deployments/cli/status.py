"""`reelserve status`: is it up, and how busy is each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.cli.client import Client
from deployments.cli.output import JsonOption, reporting, table

ENDED = ("completed", "failed", "cancelled", "expired")


def status(as_json: JsonOption = False) -> None:
    """Show whether Reelserve is ready, and each model's queue.

    Exit code 1: it cannot be reached, or is not ready.

    Examples:
      reelserve status
      reelserve status --json | jq '.pools[].queued'
    """
    with reporting(as_json) as out, Client.as_user() as api:
        ready = api.get("readyz").body["status"]
        answer = api.get("v1", "status").body
        rows = [_row(name, pool) for name, pool in answer["pools"].items()]
        heads = ("model", "queued", "in progress", "oldest wait", *ENDED)
        out.result(
            {"url": api.url, "ready": ready == "ready", **answer},
            f"Reelserve at {api.url} is {ready}.\n",
            table(*heads, rows=rows),
        )


def _row(name: str, pool: Mapping[str, Any]) -> tuple[object, ...]:
    ended = (pool["ended"].get(state, 0) for state in ENDED)
    return (name, pool["queued"], pool["in_progress"], f"{pool['oldest_wait_s']} s", *ended)
