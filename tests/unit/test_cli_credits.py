"""How the command line buys credits and shows them, against a scripted API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import buy, client
from tests.scripted import Answer, Script, error, reelserve

CHECKOUT = "cs_sandbox_0123"
PAGE = f"http://127.0.0.1:8000/sandbox/checkout/{CHECKOUT}"
LOOK = f"GET /v1/credits/checkout/{CHECKOUT}"
INTERRUPT_S = 20  # to start Python and reach the first look, on a busy machine


def offer(**fields: Any) -> dict[str, Any]:
    return {
        "title": "10 extra generations",
        "credits": 40.0,
        "price": "4.00 usd",
        "price_minor": 400,
        "currency": "usd",
        "expires_days": 365,
        **fields,
    }


def made() -> dict[str, Any]:
    ours = {"id": CHECKOUT, "object": "checkout", "url": PAGE, "pack": "extra-10"}
    return offer(**ours)


def stands(state: str, grant: str | None = None) -> Answer:
    return Answer(
        {"id": CHECKOUT, "pack": "extra-10", "credits": 40, "state": state, "grant": grant}
    )


def credits(balance: float, user: str = "ann") -> dict[str, Any]:
    return {
        "object": "credits",
        "user": user,
        "balance": balance,
        "held": 0,
        "debt": 0,
        "grants": [],
    }


@pytest.fixture
def shop(api: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A checkout that is paid at the third look."""
    monkeypatch.setattr(buy, "POLL_S", 0.01)
    api.on("GET /v1/credits/packs", Answer({"data": [], "provider": "sandbox"}))
    api.on("POST /v1/credits/checkout", Answer(made()))
    api.on(LOOK, stands("open"), stands("processing"), stands("paid", "sandbox:pi_1"))
    api.on("GET /v1/credits", Answer(credits(41.5)))
    return api


def test_packs_are_listed_with_their_prices(api: Script) -> None:
    packs = [offer(id="extra-10"), offer(id="drop", credits=0.125, expires_days=None)]
    api.on("GET /v1/credits/packs", Answer({"data": packs, "provider": "sandbox"}))
    result = reelserve("credits", "packs")
    assert result.exit_code == 0, result.stderr
    first, second = (line.split() for line in result.stdout.splitlines()[-2:])
    assert first == [
        "extra-10",
        *["10", "extra", "generations", "40", "4.00", "usd", "after", "365", "days"],
    ]
    assert second[-4:] == ["0.125", "4.00", "usd", "never"]
    assert json.loads(reelserve("credits", "packs", "--json").stdout)["data"] == packs
    api.on("GET /v1/credits/packs", Answer({"data": packs, "provider": None}))
    assert "Nothing can be bought here" in reelserve("credits", "packs").stderr


def test_buying_says_where_to_pay_waits_and_shows_the_balance(shop: Script) -> None:
    result = reelserve("credits", "buy", "extra-10")
    assert result.exit_code == 0, result.stderr
    assert shop.requests["POST /v1/credits/checkout"] == [{"pack": "extra-10"}]
    assert PAGE in result.stderr
    assert "10 extra generations: 40 credits for 4.00 usd" in result.stderr
    assert "the provider waits for the money" in result.stderr
    assert "balance" in result.stdout
    assert "41.5" in result.stdout
    assert len(shop.requests[LOOK]) == 3


def test_buying_with_json_prints_one_value(shop: Script) -> None:
    result = reelserve("credits", "buy", "extra-10", "--json")
    said = json.loads(result.stdout)
    assert said["checkout"]["state"] == "paid"
    assert said["credits"]["balance"] == 41.5


def test_without_waiting_the_address_stands_alone(shop: Script) -> None:
    assert reelserve("credits", "buy", "extra-10", "--no-wait").stdout == f"{PAGE}\n"
    said = reelserve("credits", "buy", "extra-10", "--no-wait", "--json").stdout
    assert json.loads(said) == made()
    assert shop.requests[LOOK] == []


def test_the_page_is_opened_where_asked(shop: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    reelserve("credits", "buy", "extra-10", "--no-wait")
    assert shown == []
    reelserve("credits", "buy", "extra-10", "--no-wait", "--open")
    assert shown == [PAGE]


@pytest.mark.parametrize(
    ("state", "says"), [("failed", "the payment failed"), ("expired", "nobody paid in time")]
)
def test_what_was_not_paid_is_exit_code_1(shop: Script, state: str, says: str) -> None:
    shop.on(LOOK, stands("open"), stands(state))
    result = reelserve("credits", "buy", "extra-10", "--json")
    assert result.exit_code == 1
    failure = json.loads(result.stdout)["error"]
    assert failure["code"] == f"checkout_{state}"
    assert says in failure["message"]
    assert shop.requests["GET /v1/credits"] == []


def test_an_answer_that_is_lost_opens_no_second_checkout(shop: Script) -> None:
    shop.on("POST /v1/credits/checkout", Answer(made(), cut=10), Answer(made()))
    shop.on(LOOK, Answer(cut=0), error(503, "service_unavailable", "Away."), stands("paid"))
    result = reelserve("credits", "buy", "extra-10")
    assert result.exit_code == 0, result.stderr
    assert len(shop.idempotency_keys) == 2
    assert len(set(shop.idempotency_keys)) == 1


def test_trouble_that_lasts_ends_with_where_to_pay(
    shop: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.1)
    shop.on(LOOK, stands("open"), error(503, "service_unavailable", "Away."))
    result = reelserve("credits", "buy", "extra-10")
    assert result.exit_code == 1
    assert f"pay it at    {PAGE}" in result.stderr


def test_nobody_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch, shop: Script) -> None:
    monkeypatch.setenv("REELSERVE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(client, "PATIENCE_S", 3600)
    result = reelserve("credits", "buy", "extra-10")
    assert result.exit_code == 1
    assert "cannot reach Reelserve" in result.stderr


def test_a_refusal_is_told(shop: Script) -> None:
    shop.on(
        "POST /v1/credits/checkout",
        error(501, "payments_not_configured", "Nothing can be bought here."),
    )
    result = reelserve("credits", "buy", "extra-10")
    assert result.exit_code == 1
    assert "Nothing can be bought here. (payments_not_configured, request req_1)" in result.stderr
    assert len(shop.requests["POST /v1/credits/checkout"]) == 1


def test_ctrl_c_leaves_the_checkout_open_and_says_so(shop: Script, tmp_path: Path) -> None:
    shop.on(LOOK, stands("open"))
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli.main", "credits", "buy", "extra-10"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        # A shell starts its background jobs deaf to SIGINT, and the deafness is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert process.stderr is not None
    before = ""
    while "not paid yet" not in before:
        line = process.stderr.readline()
        assert line, before
        before += line
    process.send_signal(signal.SIGINT)
    stdout, after = process.communicate(timeout=INTERRUPT_S)
    assert (process.returncode, stdout) == (130, "")
    assert "the checkout stays open" in after
    assert PAGE in after


def test_a_user_sees_their_own_credits_and_the_operator_anybodys(api: Script) -> None:
    api.on("GET /v1/credits", Answer(credits(41.5)))
    api.on("GET /v1/admin/credits/shop/eve", Answer(credits(7, "shop/eve")))
    mine, theirs = reelserve("credits", "show"), reelserve("credits", "show", "shop/eve")
    assert (mine.exit_code, theirs.exit_code) == (0, 0), mine.stderr + theirs.stderr
    assert "41.5" in mine.stdout
    assert "shop/eve" in theirs.stdout
