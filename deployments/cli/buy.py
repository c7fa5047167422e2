"""`reelserve credits packs` and `reelserve credits buy`: the shop, for a user."""

from __future__ import annotations

import secrets
import time
import webbrowser
from typing import Annotated, Any

import typer

from deployments.cli.client import Client, patiently
from deployments.cli.errors import CliError, Interrupted
from deployments.cli.output import JsonOption, Output, facts, plain, reporting, table

Checkout = dict[str, Any]

# The wire's words: the command line may be older or newer than the server.
UNPAID = frozenset({"open", "processing"})
STANDS = {
    "open": "not paid yet",
    "processing": "on its way: the provider waits for the money",
    "paid": "paid",
    "failed": "the payment failed",
    "expired": "nobody paid in time",
}
POLL_S = 1.0


def packs(as_json: JsonOption = False) -> None:
    """List the packs of credits there are to buy.

    Example: reelserve credits packs
    """
    with reporting(as_json) as out, Client.as_user() as api:
        shop = api.get("v1", "credits", "packs").body
        rows = [
            (pack["id"], pack["title"], number(pack["credits"]), pack["price"], _life(pack))
            for pack in shop["data"]
        ]
        heads = ("pack", "title", "credits", "price", "expires")
        out.result(shop, table(*heads, rows=rows) if rows else "No packs.")
        if shop["provider"] is None:
            out.note("Nothing can be bought here: no payment provider is set up.")


def buy(
    pack: Annotated[str, typer.Argument(help="See `reelserve credits packs`.")],
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the address to pay at and return at once.")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Open that page in a browser.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Buy a pack: print the address to pay at, wait until it is paid, print the balance.

    Ctrl-C stops the waiting; the page stays open and can still be paid. Exit code 1: the payment
    failed, or nobody paid in time.

    Example: reelserve credits buy extra-10 --open
    """
    with reporting(as_json) as out, Client.as_user() as api:
        api.get("v1", "credits", "packs")  # that nobody is there is told at once
        made = _open(api, pack, out)
        if open_page:
            webbrowser.open(made["url"])
        if no_wait:
            out.result(made, plain(made["url"]))
            return
        out.note(
            f"{plain(made['title'])}: {number(made['credits'])} credits for {plain(made['price'])}."
            f" Pay at\n  {plain(made['url'])}"
        )
        checkout = _wait(api, made, out)
        balance = patiently(lambda: api.get("v1", "credits").body, out.note)
        bought = {"checkout": checkout, "credits": balance}
        out.result(bought, facts([("paid", plain(made["title"])), *balance_of(balance)]))


def _open(api: Client, pack: str, out: Output) -> Checkout:
    """A new checkout: one, even if an answer is lost."""
    key, fields = secrets.token_hex(16), {"pack": pack}
    path = ("v1", "credits", "checkout")
    return patiently(lambda: api.post(*path, fields=fields, idempotency_key=key).body, out.note)


def _wait(api: Client, made: Checkout, out: Output) -> Checkout:
    """The checkout once it is paid; :class:`CliError` if it never will be, or on Ctrl-C."""
    try:
        with out.stderr.status("") as line:
            last = ""
            while (found := _look(api, made, out))["state"] in UNPAID:
                text = f"{STANDS[found['state']]}; Ctrl-C stops the waiting"
                line.update(text)
                if text != last and not out.stderr.is_terminal:
                    out.note(text)
                last = text
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise _told(Interrupted("Interrupted; the checkout stays open."), made) from None
    except CliError as error:
        raise _told(error, made) from error
    state = found["state"]
    if state != "paid":
        raise CliError(
            f"{STANDS.get(state, state)}; nothing was bought. "
            f"`reelserve credits buy {plain(found['pack'])}` opens a new checkout",
            code=f"checkout_{state}",
        )
    return found


def _look(api: Client, made: Checkout, out: Output) -> Checkout:
    return patiently(lambda: api.get("v1", "credits", "checkout", made["id"]).body, out.note)


def _told(error: CliError, made: Checkout) -> CliError:
    """``error``, with how to go on."""
    error.hint = f"  pay it at    {plain(made['url'])}\n  see whether  reelserve credits show"
    return error


def _life(pack: dict[str, Any]) -> str:
    days = pack["expires_days"]
    return "never" if days is None else f"after {days} days"


def balance_of(credits: dict[str, Any]) -> list[tuple[str, object]]:
    """What a user may spend, for :func:`facts`."""
    return [
        ("balance", number(credits["balance"])),
        ("held", number(credits["held"])),
        ("debt", number(credits["debt"])),
    ]


def number(credits: float) -> str:
    """Credits as they are written: without trailing zeros."""
    return f"{credits:.15g}"
