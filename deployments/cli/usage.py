"""`reelserve usage`: what the caller may still do today."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from deployments.cli.client import Client
from deployments.cli.output import JsonOption, facts, reporting, when


def usage(as_json: JsonOption = False) -> None:
    """Show what your tier allows, what of it is used, and when it comes back.

    Examples:
      reelserve usage
      reelserve usage --json | jq .allowance.generations.left
    """
    with reporting(as_json) as out, Client.as_user() as api:
        answer = api.get("v1", "usage").body
        out.result(answer, facts(_facts(answer)))


def _facts(answer: Mapping[str, Any]) -> list[tuple[str, object]]:
    allowance = answer["allowance"]
    requests, surging = answer["requests"], [name for name, on in answer["surge"].items() if on]
    return [
        ("tier", f"{answer['tier']}: class {answer['class']}; beyond: {answer['beyond']}"),
        ("clips today", _of(allowance["generations"])),
        ("GPU seconds today", _of(allowance["gpu_seconds"])),
        ("new day", _resets(allowance)),
        ("submissions", _rate(requests)),
        ("running", _jobs(answer["running"])),
        ("queued", _jobs(answer["queued"])),
        ("surge", _surge(surging, answer["surge_rules"])),
    ]


def _of(bound: Mapping[str, Any]) -> str:
    if bound["limit"] is None:
        return "no limit"
    return f"{bound['used']:g} of {bound['limit']:g} used, {bound['left']:g} left"


def _resets(allowance: Mapping[str, Any]) -> str | None:
    at = allowance["resets_at"]
    if at is None:
        return None
    minutes = math.ceil(max(0.0, at - time.time()) / 60)
    span = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{when(at)}, in {span} (midnight {allowance['time_zone']})"


def _rate(requests: Mapping[str, Any]) -> str:
    limit = requests["limit_per_minute"]
    return "no limit" if limit is None else f"{requests['left']} now; {limit} a minute"


def _jobs(bound: Mapping[str, Any]) -> str:
    limit = bound["limit"]
    return f"{bound['count']}" if limit is None else f"{bound['count']} of {limit}"


def _surge(models: list[str], rules: Mapping[str, Any] | None) -> str | None:
    if not models or rules is None:
        return None
    held = {
        "clips a day": rules["generations_per_day"],
        "class": rules["class"],
    }
    changes = ", ".join(f"{name} {value}" for name, value in held.items() if value is not None)
    return f"{', '.join(models)}: {changes}"
