"""`reelserve status`: is it up, and how busy is each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deployments.cli.client import Client
from deployments.cli.output import JsonOption, reporting, table

ENDED = ("completed", "failed", "cancelled", "expired")
REPLICA = ("replica", "where", "state", "free slots", "age")


def status(as_json: JsonOption = False) -> None:
    """Show whether Reelserve is ready, each model's queue and replicas, and what happened to jobs.

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
            table(*REPLICA, rows=_replicas(answer["pools"])),
            *_failed_starts(answer["pools"]),
            *_events(answer["pools"]),
            *_estimates(answer["pools"]),
        )


def _replicas(pools: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    for name, pool in pools.items():
        for each in pool["replicas"]:
            where = f"{each['host']}, pid {each['pid']}"
            free = f"{each['free']} of {each['slots']}" if each["slots"] else ""
            age = f"{each['age_s']:.0f} s"
            yield (f"{name} {each['id'][:12]}", where, each["state"], free, age)


def _failed_starts(pools: Mapping[str, Any]) -> Iterator[str]:
    """Replicas that did not become ready, where the last ones did not."""
    for name, pool in pools.items():
        if times := pool["failed_starts"]["count"]:
            said = f"the last {times} replicas" if times > 1 else "the last replica"
            yield f"{name}: {said} failed to start ({pool['failed_starts']['error']})"


def _events(pools: Mapping[str, Any]) -> Iterator[str]:
    """What happened to running jobs so far, where anything did."""
    for name, pool in pools.items():
        if pool["counts"]:
            counted = ", ".join(f"{event} {times}" for event, times in pool["counts"].items())
            yield f"{name}: {counted}"


def _estimates(pools: Mapping[str, Any]) -> Iterator[str]:
    """How far predictions were off lately, where anything was predicted."""
    for name, pool in pools.items():
        for device, stages in pool["costs"].items():
            off = (f"{stage} {100 * each['error']:.0f}%" for stage, each in stages.items())
            yield f"{name} on {device}: estimates off by {', '.join(off)}"


def _row(name: str, pool: Mapping[str, Any]) -> tuple[object, ...]:
    ended = (pool["ended"].get(state, 0) for state in ENDED)
    return (name, pool["queued"], pool["in_progress"], f"{pool['oldest_wait_s']} s", *ended)
