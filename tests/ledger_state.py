"""What must be true of everybody's credits, and of the jobs they pay for, whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quota.ledger import HoldState
from serving.jobs import ACTIVE, State

if TYPE_CHECKING:
    from tests.queue_state import QueueState


def ledger_problems(state: QueueState) -> Iterator[str]:
    yield from _balances(state)
    yield from _holds(state)


def _balances(state: QueueState) -> Iterator[str]:
    """Every user's figures are the sums of grants and holds, and nothing came from nowhere."""
    sums: dict[str, Counter[str]] = {}
    listed: dict[str, set[str]] = {}
    for ref, grant in state.of("credit").items():
        if grant["type"] == "grant":
            left = int(grant["left"])
            sums.setdefault(grant["user"], Counter())["available"] += left
            if left:
                listed.setdefault(grant["user"], set()).add(grant["place"])
            if min(left, int(grant["expired"]), int(grant["reversed"])) < 0:
                yield f"more of the grant {ref} went than there was: {grant}"
    for hold in state.of("hold").values():
        if hold["state"] == HoldState.HELD:
            sums.setdefault(hold["user"], Counter())["held"] += int(hold["amount"])
    total = all_held = 0
    for user in {*sums, *state.of("credits")}:
        has = state.hashes.get(f"credits:{user}", {})
        available, held, debt = (int(has.get(name, 0)) for name in ("available", "held", "debt"))
        said = sums.get(user, Counter())
        if (available, held) != (said["available"], said["held"]) or debt < 0:
            yield f"{user} has {has}, and grants and holds of {said}"
        if set(state.zsets.get(f"grants:{user}", ())) != listed.get(user, set()):
            yield f"{user} has other grants to use than those that have something left"
        total += available + held - debt
        all_held += held
    total += sum(int(amount) for amount in state.hashes.get("ledger:accounts", {}).values())
    if int(state.hashes.get("ledger:sums", {}).get("held", 0)) != all_held:
        yield f"all users together have {all_held} held"
    if total:
        yield f"all accounts together have {total}"


def _holds(state: QueueState) -> Iterator[str]:
    """What is held is held for a job that has not ended; what is settled is what the job cost."""
    jobs = state.jobs
    for job_id, hold in state.of("hold").items():
        job = jobs.get(job_id, {})
        # One that is gone may have been submitted again, and then be paid otherwise.
        if job.get("from") != "credits":
            if hold["state"] == HoldState.HELD:
                yield f"{hold} is held for {job_id}, which it does not pay for"
            continue
        cost = int(job.get("credits", 0))
        # Of one that was heard while it was made, what was made by the time its listener left.
        made = int(job.get("made_credits", 0))
        left = (HoldState.CAPTURED, str(made), made) if made else (HoldState.RELEASED, "0", 0)
        expected = {
            State.CANCELLED: left,
            **dict.fromkeys(ACTIVE, (HoldState.HELD, "0", int(hold["amount"]))),
            State.COMPLETED: (HoldState.CAPTURED, hold["amount"], int(hold["amount"])),
        }.get(State(job["state"]), (HoldState.RELEASED, "0", 0))
        if (hold["state"], hold["captured"], cost) != expected or hold["user"] != job["user"]:
            yield f"{job_id} is {job['state']} at {cost}, and its hold is {hold}"
    for job_id, job in jobs.items():
        if int(job.get("credits", 0)) and f"hold:{job_id}" not in state.hashes:
            yield f"{job_id} is paid for with what is not held"
