"""Whether jobs and the credits held for them agree, in a cell that goes on working."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quota.ledger import HoldState
from serving.jobs.cell import Cell
from serving.jobs.job import ACTIVE, State

PAGE = 500


async def compare_holds(cell: Cell) -> Sequence[str]:
    """Each job whose hold is not what its state asks for, and each hold without its job; nothing is
    wrong if there are none.

    While a job waits or runs, its price is held; when it was made, what was captured is what it
    says it cost, as when somebody heard a part of it and left; and otherwise all was given back. A
    job and its hold are read at one moment.
    """
    found: list[str] = []
    async with cell.answers():
        names = [*await _names(cell, "job"), *await _names(cell, "hold")]
        ids = list(dict.fromkeys(names))
        for first in range(0, len(ids), PAGE):
            page = ids[first : first + PAGE]
            async with cell.redis.pipeline(transaction=True) as pipe:
                for job_id in page:
                    pipe.hgetall(cell.key("job", job_id))
                    pipe.hgetall(cell.key("hold", job_id))
                hashes = await pipe.execute()
            for job_id, job, hold in zip(page, hashes[::2], hashes[1::2], strict=True):
                if problem := _compare(job, hold):
                    found.append(f"{job_id}: {problem}")
    return found


def _compare(job: Mapping[str, str], hold: Mapping[str, str]) -> str:
    held = hold.get("state")
    if not job:
        return "its credits are held, and there is no such job" if held == HoldState.HELD else ""
    if "credits" not in job:
        return "it costs nothing, and there is a hold for it" if hold else ""
    state, credits = State(job["state"]), job["credits"]
    if hold and hold["user"] != job["user"]:
        return f"it is {job['user']}'s, and held are {hold['user']}'s credits"
    if state in ACTIVE:
        if (held, hold.get("amount")) != (HoldState.HELD, credits):
            return f"it is {state} for {credits}, and its hold is {dict(hold)}"
        return ""
    # What was settled is forgotten after a while, and so may be before its job.
    partly = state is State.CANCELLED and "inline" in job and credits != "0"
    captured = state is State.COMPLETED or partly
    should = HoldState.CAPTURED if captured else HoldState.RELEASED
    if hold and (held, hold["captured"]) != (should, credits):
        return f"it is {state} and cost {credits}, and its hold is {dict(hold)}"
    return "" if captured or credits == "0" else f"it is {state} and cost {credits}"


async def _names(cell: Cell, kind: str) -> list[str]:
    prefix = cell.key(kind, "")
    return [
        name.removeprefix(prefix)
        async for name in cell.redis.scan_iter(match=f"{prefix}*", count=PAGE)
    ]
