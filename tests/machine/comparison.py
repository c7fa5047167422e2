"""Whether Redis holds what the model says: jobs, fairness, allowances, keys and credits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from quota.ledger import Entry, HoldState
from serving.jobs import State
from serving.plan.classes import CLASSES, ServiceClass
from tests.ledger_model import LedgerModel, ModelGrant
from tests.queue_model import QueueModel
from tests.queue_state import QueueState, close

POOL = "demo-wan"
USERS = ("ann", "bob", "cleo", "dan")
SLACK_MS = 10_000
"""A busy machine may take as long for a step; every jump of the clock is longer by far."""


def compare(model: QueueModel, state: QueueState, entries: Sequence[Entry]) -> None:
    """AssertionError where they do not say the same. ``entries`` are the latest of the ledger."""
    _compare_jobs(model, state)
    _compare_fairness(model, state)
    _compare_figures(model, state)
    _compare_allowances(model, state)
    _compare_remembered(model, state)
    _compare_entries(model.ledger, state, entries)
    _compare_grants(model.ledger, state)
    _compare_balances(model.ledger, state)


def _compare_jobs(model: QueueModel, state: QueueState) -> None:
    jobs = state.jobs
    assert set(jobs) == set(model.jobs)
    for job in model.jobs.values():
        raw = jobs[job.id]
        # When it was submitted is Redis's to say, to the millisecond; and which lease ends first.
        assert abs(int(raw["created_ms"]) - job.created_ms) <= SLACK_MS
        job.created_ms = int(raw["created_ms"])
        if job.runs:
            assert abs(int(raw["lease_until_ms"]) - job.lease_until_ms) <= SLACK_MS
            job.lease_until_ms = int(raw["lease_until_ms"])
        assert _fields(raw) == {
            "state": job.state,
            "class": job.service_class,
            "from": job.paid_from,
            "credits": job.credits,
            "seq": job.seq,
            "left": job.left_ms,
            "spent": job.spent_ms,
            "charged": job.charged_ms,
            "attempts": job.attempts,
            "fence": job.fence,
            "seat": job.seat,
            "day": job.day_ms,
        }
    ended = state.hashes.get(f"ended:{POOL}", {})
    assert {State(name): int(n) for name, n in ended.items()} == model.ended


def _fields(raw: dict[str, str]) -> dict[str, Any]:
    return {
        "state": raw["state"],
        "class": raw["class"],
        "from": raw["from"],
        "credits": int(raw.get("credits", 0)),
        "seq": int(raw["seq"]),
        "left": int(raw.get("left_device_ms", raw["est_device_ms"])),
        "spent": int(raw.get("spent_ms", 0)),
        "charged": int(raw["charged_ms"]) if "charged_ms" in raw else None,
        "attempts": int(raw.get("attempts", 0)),
        "fence": int(raw.get("fence", 0)),
        "seat": int(raw.get("seat", 0)),
        "day": int(raw["day"]) if raw.get("day") else None,
    }


def _compare_fairness(model: QueueModel, state: QueueState) -> None:
    fair = state.hashes.get(f"fair:{POOL}", {})
    for each in CLASSES:
        group = model.classes[each]
        assert state.zsets.get(f"counters:{POOL}:{each}", {}) == close(group.counters)
        assert set(state.zsets.get(f"ready:{POOL}:{each}", ())) == group.ready
        assert state.zsets.get(f"floors:{POOL}:{each}", {}) == close(group.floors)
        expected_fair = {
            "credit": group.credit,
            "reached": group.reached,
            "window": group.window,
            "passed": group.passed,
            "lifted": group.last_lift,
        }
        for name, value in expected_fair.items():
            found = float(fair.get(f"{each}:{name}", -1 if name == "lifted" else 0))
            assert found == pytest.approx(value, abs=1e-6, rel=1e-12), name


def _compare_figures(model: QueueModel, state: QueueState) -> None:
    """All that is counted: nothing is missing, nothing is there twice."""
    backlog = _counts(state, "backlog")
    for each in CLASSES:
        running = [job.est_ms for job in model.running() if job.service_class is each]
        jobs = backlog[f"{each}:jobs"] + len(running) + backlog[f"{each}:ended_jobs"]
        assert jobs == model.arrived[each, "jobs"]
        waiting_ms = backlog[f"{each}:ms"] + backlog[f"{each}:saved_ms"]
        assert waiting_ms + sum(running) + backlog[f"{each}:ended_ms"] == model.arrived[each, "ms"]
    assert _counts(state, "refused") == model.refused
    assert _counts(state, "steps") == +model.steps
    measured: Counter[tuple[ServiceClass, str]] = Counter()
    for field, value in _counts(state, "times").items():
        service_class, name, bucket = field.split(":")
        if bucket != "sum":
            measured[ServiceClass(service_class), name] += value
    for field, value in _counts(state, "slo").items():
        service_class, objective, outcome = field.split(":")
        if objective == "done":
            measured[ServiceClass(service_class), outcome] += value
    assert measured == model.measured


def _counts(state: QueueState, kind: str) -> Counter[str]:
    found = state.hashes.get(f"{kind}:{POOL}", {})
    return Counter({name: int(value) for name, value in found.items()})


def _compare_allowances(model: QueueModel, state: QueueState) -> None:
    for user in USERS:
        used = state.hashes.get(f"used:{user}", {})
        day_ms, *amounts = (int(used.get(name, 0)) for name in ("day", "generations", "gpu_ms"))
        assert tuple(amounts if day_ms == model.day() else (0, 0)) == model.used_now(user)


def _compare_remembered(model: QueueModel, state: QueueState) -> None:
    remembered, answers = {}, {}
    for (user, name), known in model.keys.items():
        remembered[f"idempotent:{user}:{name}"] = f"{known.body} {known.job_id}"
        if known.response is not None:
            answers[f"answer:{user}:{name}"] = known.response
    for expected in (remembered, answers):
        kind = "idempotent:" if expected is remembered else "answer:"
        found_here = {name: kept for name, kept in state.strings.items() if name.startswith(kind)}
        assert found_here == expected


def _compare_entries(model: LedgerModel, state: QueueState, entries: Sequence[Entry]) -> None:
    """Each was written, once, in this order, and to whose it is."""
    assert state.lengths.get("ledger", 0) == len(model.entries)
    told = [
        (entry.type, entry.user, entry.ref, entry.of, dict(entry.postings)) for entry in entries
    ]
    assert told == model.entries[len(model.entries) - len(told) :]
    for user in USERS:
        mine = sum(entry[1] == user for entry in model.entries)
        assert state.lengths.get(f"entries:{user}", 0) == mine


def _compare_grants(model: LedgerModel, state: QueueState) -> None:
    credit = state.of("credit")
    assert {ref for ref, raw in credit.items() if raw["type"] == "grant"} == set(model.grants)
    for ref, grant in model.grants.items():
        raw = credit[ref]
        # When it was given is Redis's to say, too.
        created_ms = int(raw["place"].split(" ")[2])
        assert abs(created_ms - grant.created_ms) <= SLACK_MS
        grant.created_ms = created_ms
        amounts = [int(raw[name]) for name in ("amount", "left", "expired", "reversed")]
        assert (raw["user"], raw["kind"], *amounts) == _told(grant)


def _told(grant: ModelGrant) -> tuple[object, ...]:
    amounts = grant.amount, grant.left, grant.expired, grant.reversed
    return grant.user, grant.kind, *amounts


def _compare_balances(model: LedgerModel, state: QueueState) -> None:
    """What each may spend from what, in this order; what is held for whom, and what came of it."""
    for user in USERS:
        places = sorted(state.zsets.get(f"grants:{user}", ()))
        assert [place.split(" ")[3] for place in places] == [each.ref for each in model.of(user)]
        has = state.hashes.get(f"credits:{user}", {})
        figures = [int(has.get(name, 0)) for name in ("held", "debt")]
        assert figures == [model.held(user), model.debt(user)]
    accounts = state.hashes.get("ledger:accounts", {})
    sums = [int(accounts.get(name, 0)) for name in ("issued", "earned", "expired")]
    assert sums == [-model.issued, model.earned, model.expired]
    settled = [hold for hold in model.holds.values() if hold.state is not HoldState.HELD]
    released = sum(hold.amount - hold.captured for hold in settled)
    assert int(state.hashes.get("ledger:sums", {}).get("released", 0)) == released
    assert model.earned == sum(hold.captured for hold in model.holds.values())
    for job_id, raw in state.of("hold").items():  # a settled one goes after a while
        hold = model.holds[job_id]
        told = raw["user"], int(raw["amount"]), raw["state"], int(raw["captured"])
        assert told == (hold.user, hold.amount, hold.state, hold.captured)
