"""Everything is killed at once, amid a crowd that buys credits and spends them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.stacks import REELSERVE, Stack, gone, up, wait_for

CUSTOMERS = 500
KILLED_AFTER = 60
"""So many of their jobs were accepted; others pay by then, or open their checkouts."""
PACK = "extra-10"
OPTIONS = ("--payments", "sandbox")
ENV = {"REELSERVE_ADMIN_KEY": "the-operator", "REELSERVE_API_CHECKOUTS_PER_HOUR": "1000"}
CLIP = {
    "prompt": "a red ball",
    "seconds": 1,
    "steps": 2,
    "service_tier": "priority",
    "max_credits": 8,
}


@dataclass
class Crowd:
    """Who got an answer: checkouts that were opened, those that were paid, and jobs."""

    opened: list[str] = field(default_factory=list)
    paid: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)

    async def customer(self, client: httpx.AsyncClient) -> None:
        """Buys a pack, and spends some of it."""
        answer = await client.post("/v1/credits/checkout", json={"pack": PACK})
        checkout = answer.raise_for_status().json()["id"]
        self.opened.append(checkout)
        answer = await client.post(f"/sandbox/checkout/{checkout}", data={"press": "pay"})
        if answer.status_code != httpx.codes.SEE_OTHER:
            answer.raise_for_status()
        self.paid.append(checkout)
        answer = await client.post("/v1/videos", json=CLIP)
        self.jobs.append(answer.raise_for_status().json()["id"])

    async def comes(self, stack: Stack) -> None:
        """All of them at once, until nothing is left of the stack."""
        client = httpx.AsyncClient(
            base_url=stack.url,
            headers={"authorization": f"Bearer {stack.api_key}"},
            limits=httpx.Limits(max_connections=None),
            timeout=120,
            trust_env=False,
        )
        async with client:
            crowd = [asyncio.create_task(self.customer(client)) for _ in range(CUSTOMERS)]
            while len(self.jobs) < KILLED_AFTER:
                assert not all(each.done() for each in crowd), "too few were answered"
                await asyncio.sleep(0.01)
            kill_all(stack)
            ends = await asyncio.gather(*crowd, return_exceptions=True)
        refused = [end for end in ends if end is not None and not _is_of_the_kill(end)]
        assert refused == []
        assert ends.count(None) < CUSTOMERS * 3 / 4, "the crowd was there when it happened"


def _is_of_the_kill(error: BaseException) -> bool:
    """No answer, or one of a part that outlived another for a moment."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError)


def kill_all(stack: Stack) -> None:
    """SIGKILL to every process, the one that would notice first of all."""
    everything = [psutil.Process(stack.process.pid), *stack.processes()]
    for process in everything:
        process.suspend()
    for process in everything:
        process.kill()
    stack.process.wait(30)
    assert gone(everything) == []


def ledger(stack: Stack) -> list[dict[str, str]]:
    """Every posting."""
    out = subprocess.run(
        [str(REELSERVE), "ledger", "export", "--format", "csv"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**stack.client_env, **ENV},
    )
    return list(csv.DictReader(io.StringIO(out.stdout)))


def verify(stack: Stack) -> list[str]:
    out = subprocess.run(
        [str(REELSERVE), "ledger", "verify", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**stack.client_env, **ENV},
    )
    differences: list[str] = json.loads(out.stdout)["differences"]
    return differences


def purchases(postings: list[dict[str, str]]) -> Counter[str]:
    """How often each was granted, by its ref."""
    return Counter(
        each["ref"]
        for each in postings
        if (each["type"], each["kind"], each["account"]) == ("grant", "purchase", "cell:issued")
    )


@pytest.mark.timeout(900)
def test_no_purchase_and_no_clip_is_lost_when_everything_is_killed(tmp_path: Path) -> None:
    crowd = Crowd()
    with up(tmp_path / "data", env=ENV, options=OPTIONS) as stack:
        asyncio.run(crowd.comes(stack))

    with up(tmp_path / "data", env=ENV, options=OPTIONS) as stack, stack.client() as client:
        for job in crowd.jobs:
            video = wait_for(client, job, seconds=240)
            assert video["status"] == "completed", video
        # Those whose answer was lost may be there, too.
        while client.get("/v1/credits").json()["held"]:
            pass
        assert verify(stack) == []
        postings = ledger(stack)
        captured = {each["of"] for each in postings if each["type"] == "capture"}
        assert captured >= set(crowd.jobs)
        for job in captured:
            clip = client.get(f"/v1/videos/{job}/content")
            assert (clip.status_code, clip.content[4:8]) == (200, b"ftyp"), job

        states = {
            checkout: client.get(f"/v1/credits/checkout/{checkout}").json()
            for checkout in crowd.opened
        }
        grants = purchases(postings)
        assert set(grants.values()) == {1}
        for checkout in crowd.paid:
            assert (states[checkout]["state"], grants[states[checkout]["grant"]]) == ("paid", 1)

        # And whoever was not answered may ask again: it is granted once.
        for checkout in crowd.opened:
            page = client.post(f"/sandbox/checkout/{checkout}", data={"press": "pay"})
            assert page.status_code == httpx.codes.SEE_OTHER
        now = purchases(ledger(stack))
        assert set(now.values()) == {1}
        assert now.keys() >= grants.keys()
        assert len(now) == len(crowd.opened), "nobody paid for a page they never heard of"
        assert verify(stack) == []
