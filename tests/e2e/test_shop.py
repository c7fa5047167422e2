"""Credits from the sandbox to a clip, on the whole stack, as a user does it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.stacks import REELSERVE, Stack, up

SMALL = ["--seconds", "1", "--steps", "3"]


def answer(stack: Stack, *arguments: str, cwd: Path | None = None) -> Any:
    """What a command says as JSON."""
    done = subprocess.run(
        [str(REELSERVE), *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=stack.client_env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_credits_are_bought_in_the_sandbox_and_pay_for_a_clip(tmp_path: Path) -> None:
    with up(tmp_path / "data", options=("--payments", "sandbox")) as stack:
        packs = answer(stack, "credits", "packs")
        assert packs["provider"] == "sandbox"
        price = {pack["id"]: pack for pack in packs["data"]}["extra-10"]

        buyer = subprocess.Popen(
            [str(REELSERVE), "credits", "buy", "extra-10", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=stack.client_env,
        )
        assert buyer.stderr is not None
        page = ""
        while not page:
            line = buyer.stderr.readline()
            assert line, "it ended without a word of where to pay"
            found = re.search(r"http://\S+/sandbox/checkout/\S+", line)
            page = found[0] if found else ""
        assert page.startswith(stack.url)
        paid = httpx.post(page, data={"press": "pay"}, follow_redirects=True, trust_env=False)
        assert (paid.status_code, "Thank you" in paid.text) == (200, True), paid.text
        bought, said = buyer.communicate(timeout=60)
        assert buyer.returncode == 0, said
        assert json.loads(bought)["checkout"]["state"] == "paid"
        assert json.loads(bought)["credits"]["balance"] == price["credits"]

        paying = ["--service-tier", "priority", "--max-credits", "8"]
        clip = answer(stack, "submit", "a red ball", *SMALL, *paying, cwd=tmp_path)
        assert (clip["status"], clip["class"], clip["usage"]["from"]) == (
            "completed",
            "burst",
            "credits",
        )
        assert (tmp_path / f"{clip['id']}.mp4").exists()
        left = answer(stack, "credits", "show")
        assert left["balance"] == price["credits"] - clip["usage"]["credits"]
        assert left["held"] == 0
        assert answer(stack, "ledger", "verify")["differences"] == []
