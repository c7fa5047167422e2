"""The second half of ``make demo``: an allowance used up, credits bought, the line skipped.

It does as a user, a shop and a browser would, over HTTP alone, and checks what it says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.cli.output import plain, table
from deployments.settings import StackSettings
from deployments.stack import LocalStack

BUYER, OTHERS = "ann", ("bob", "carol", "dave", "erin", "frank")
PACK = "extra-10"
TIERS = {
    "default_tier": "small",
    "tiers": {
        "small": {"generations_per_day": 1, "beyond": "credits"},
        "unlimited": {},
    },
}
CLIP = {"prompt": "a green kite over a beach", "seconds": 4}
SHORT = {"prompt": "waves", "seconds": 1}
POLL_S = 0.05
WAIT_S_MAX = 300
ENDED = ("completed", "failed", "cancelled", "expired")


class DemoFailed(Exception):
    """Something is not as it should be; the message says what."""


def prepare(folder: Path) -> dict[str, Any]:
    """Settings for the stack, and in ``folder`` the files they name: a tier with a small allowance,
    and a model that makes one clip at a time, so that there is a line to skip."""
    entry = StackSettings().catalog().resolve("demo-wan").model_dump(mode="json")
    entry["placement"]["slots"] = 1
    entry["scaling"] = None  # a second replica would shorten the line that is skipped
    (folder / "catalog").mkdir()
    (folder / "catalog" / "demo-wan.yaml").write_text(yaml.safe_dump(entry, sort_keys=False))
    (folder / "tiers.yaml").write_text(yaml.safe_dump(TIERS))
    os.environ["REELSERVE_QUOTA_TIERS_FILE"] = str(folder / "tiers.yaml")
    return {"catalog_dirs": [folder / "catalog"], "payments_provider": "sandbox"}


def shop(stack: LocalStack, console: Console) -> None:
    """The whole of it. :class:`DemoFailed` if anything is not as it should be."""
    with _client(stack, stack.new_admin_key) as admin:
        keys = {user: _key(admin, user) for user in (BUYER, *OTHERS)}
    with _client(stack, keys[BUYER]) as ann:
        console.print(f"\n[bold]Buying credits[/]: {BUYER} has one clip a day for nothing")
        _use_up(ann, console)
        price = _refused(ann, console)
        _buy(ann, console)
        _overtake(stack, ann, keys, price, console)
        _show_ledger(ann, console)


def _client(stack: LocalStack, key: str | None) -> httpx.Client:
    return httpx.Client(
        base_url=stack.url,
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
        trust_env=False,
    )


def _key(admin: httpx.Client, user: str) -> str:
    fields = {"user": user, "tier": "small" if user == BUYER else "unlimited"}
    return str(_json(admin.post("/v1/admin/keys", json=fields))["key"])


def _json(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    """The body of an answer that must have this status."""
    if answer.status_code != status:
        raise DemoFailed(f"{answer.request.url} answered {answer.status_code}: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise)


def _use_up(ann: httpx.Client, console: Console) -> None:
    video = _json(ann.post("/v1/videos", json=SHORT))
    _check(video["usage"]["from"] == "allowance", f"not from the allowance: {video['usage']}")
    ended = _wait(ann, video["id"])
    console.print(f"  {ended['id']}: {ended['status']}, which uses it up")


def _refused(ann: httpx.Client, console: Console) -> float:
    """The price that the refusal names."""
    outlook = _json(ann.post("/v1/estimates", json=CLIP))
    price: float = outlook["price"]["credits"]
    error = _json(ann.post("/v1/videos", json=CLIP), 429)["error"]
    _check(error["code"] == "insufficient_credits", f"refused for another reason: {error}")
    _check(f"{price:g} credits" in error["message"], f"no price of {price:g} in: {error}")
    console.print(f"  refused: [yellow]{escape(plain(error['message']))}", soft_wrap=True)
    return price


def _buy(ann: httpx.Client, console: Console) -> None:
    """Check out, and press Pay on the page as a browser would."""
    made = _json(ann.post("/v1/credits/checkout", json={"pack": PACK}))
    console.print(f"  buys {made['title']!r}: {made['credits']:g} credits for {made['price']}")
    console.print(f"  pays at {made['url']}", soft_wrap=True)
    with httpx.Client(timeout=30, trust_env=False, follow_redirects=True) as browser:
        page = browser.get(made["url"])
        form = Form.on(page.text)
        paid = browser.post(urljoin(str(page.url), form.action), data=form.pressing("pay"))
    _check(paid.is_success, f"paying answered {paid.status_code}: {paid.text}")
    checkout = _json(ann.get(f"/v1/credits/checkout/{made['id']}"))
    _check(checkout["state"] == "paid", f"not paid: {checkout}")
    balance = _json(ann.get("/v1/credits"))["balance"]
    _check(balance == made["credits"], f"{balance} credits instead of {made['credits']}")
    console.print(f"  paid; {balance:g} credits, by a signed webhook")


class Form(HTMLParser):
    """The form of a page, as far as a press of one of its buttons needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self._fields: dict[str, str] = {}
        self._buttons: dict[str, dict[str, str]] = {}

    @classmethod
    def on(cls, page: str) -> Form:
        form = cls()
        form.feed(page)
        return form

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and given.get("method", "").lower() == "post":
            self.action = given.get("action", "")  # without one, the page itself
        elif tag == "input" and "name" in given:
            self._fields[given["name"]] = given.get("value", "")
        elif tag == "button" and "name" in given:
            self._buttons[given["value"]] = {given["name"]: given["value"]}

    def pressing(self, button: str) -> dict[str, str]:
        """What a browser sends."""
        if button not in self._buttons:
            raise DemoFailed(f"the page has no button '{button}'")
        return self._fields | self._buttons[button]


def _overtake(
    stack: LocalStack,
    ann: httpx.Client,
    keys: Mapping[str, str],
    price: float,
    console: Console,
) -> None:
    clients = {user: _client(stack, keys[user]) for user in OTHERS} | {BUYER: ann}
    try:
        line = [(user, _json(clients[user].post("/v1/videos", json=SHORT))) for user in OTHERS]
        mine = _json(ann.post("/v1/videos", json=CLIP))
        _check(
            (mine["class"], mine["usage"]["from"], mine["usage"]["credits"])
            == ("burst", "credits", price),
            f"not a burst job paid from credits: {mine}",
        )
        line.append((BUYER, mine))
        # Those that wait now were there before it: all of them must end after it.
        waiting = {
            video["id"]
            for user, video in line[:-1]
            if _look(clients[user], video["id"])["status"] == "queued"
        }
        _check(len(waiting) > 1, f"only {len(waiting)} jobs wait, so there is no line to skip")
        console.print(
            f"\n[bold]Skipping the line[/]: {len(waiting)} standard jobs of others wait; "
            f"{BUYER} submits one for {price:g} credits"
        )
        order = _until_all_ended(clients, line)
        console.print(_order(line, order))
        ended_before = waiting & set(order[: order.index(mine["id"])])
        _check(not ended_before, f"{len(ended_before)} that waited before it ended before it")
    finally:
        for user in OTHERS:
            clients[user].close()


def _until_all_ended(
    clients: Mapping[str, httpx.Client], line: Sequence[tuple[str, dict[str, Any]]]
) -> list[str]:
    """The ids in the order of their end. The last of the line is looked at first: if it is seen to
    have ended, and another one after that not, then it ended before the other."""
    order: list[str] = []
    deadline = time.monotonic() + WAIT_S_MAX
    while len(order) < len(line):
        _check(time.monotonic() < deadline, f"not done within {WAIT_S_MAX} s")
        for user, video in reversed(line):
            if video["id"] not in order:
                now = _look(clients[user], video["id"])
                if now["status"] in ENDED:
                    _check(now["status"] == "completed", f"it {now['status']}: {now['error']}")
                    order.append(video["id"])
        time.sleep(POLL_S)
    return order


def _order(line: Sequence[tuple[str, dict[str, Any]]], order: Sequence[str]) -> Table:
    places = {video["id"]: (place, user, video) for place, (user, video) in enumerate(line, 1)}
    rows = [
        (done, user, video["class"], video["usage"]["from"], place)
        for done, (place, user, video) in enumerate((places[job] for job in order), 1)
    ]
    return table("finished", "user", "class", "paid from", "submitted", rows=rows)


def _show_ledger(ann: httpx.Client, console: Console) -> None:
    """Print what became of the credits, and check that it adds up to what there is."""
    entries = _json(ann.get("/v1/credits/ledger"))["data"]
    balance = _json(ann.get("/v1/credits"))
    types = [entry["type"] for entry in reversed(entries)]
    _check(types == ["grant", "hold", "capture"], f"unexpected entries: {types}")
    total = round(sum(entry["change"]["available"] for entry in entries), 3)
    _check(total == balance["balance"], f"entries of {total}, and a balance of {balance}")
    _check(balance["held"] == 0, f"still held: {balance}")
    console.print(f"\n[bold]The ledger[/], and a balance of {balance['balance']:g} credits")
    rows = [
        (
            entry["type"],
            entry["kind"] or "",
            f"{entry['change']['available']:+g}",
            f"{entry['change']['held']:+g}",
            plain(entry["ref"] or entry["of"], 40),
        )
        for entry in reversed(entries)
    ]
    console.print(table("entry", "kind", "available", "held", "of", rows=rows))


def _look(client: httpx.Client, video_id: str) -> dict[str, Any]:
    return _json(client.get(f"/v1/videos/{video_id}"))


def _wait(client: httpx.Client, video_id: str) -> dict[str, Any]:
    """The video, once it is completed."""
    deadline = time.monotonic() + WAIT_S_MAX
    while (video := _look(client, video_id))["status"] not in ENDED:
        _check(time.monotonic() < deadline, f"not done within {WAIT_S_MAX} s")
        time.sleep(POLL_S)
    _check(video["status"] == "completed", f"it {video['status']}: {video['error']}")
    return video
