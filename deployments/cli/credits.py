"""`reelserve credits`: buying them; and for the operator, what users have to spend."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from deployments.cli.buy import balance_of, buy, number, packs
from deployments.cli.client import Client
from deployments.cli.output import (
    ADMIN_ENVIRONMENT,
    USER_ENVIRONMENT,
    JsonOption,
    facts,
    plain,
    reporting,
    table,
    when,
)
from deployments.cli.users import UserArgument, parts_of

app = typer.Typer(
    help="Buy credits; show, give and adjust users' credits (operator).", no_args_is_help=True
)
app.command("packs", epilog=USER_ENVIRONMENT)(packs)
app.command("buy", epilog=USER_ENVIRONMENT)(buy)

DAY_S = 24 * 3600
ReasonOption = Annotated[str, typer.Option(help="Why; it stays in the ledger.", show_default=False)]
RefOption = Annotated[
    str | None,
    typer.Option(help="Again under the same ref, it is done once. Left out: one is made up."),
]


class GrantKind(StrEnum):
    PROMOTION = "promotion"
    ADJUSTMENT = "adjustment"


@app.command("show", epilog=f"{ADMIN_ENVIRONMENT}\n\nFor your own: REELSERVE_API_KEY.")
def show(
    user: Annotated[
        str | None,
        typer.Argument(help="For the operator: SERVICE/NAME is an end user. Left out: yourself."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what you, or a user, may spend, and the credits it is made of in the order of their use.

    Examples:
      reelserve credits show
      reelserve credits show shop/ann
    """
    path = ("v1", "credits") if user is None else ("v1", "admin", "credits", *parts_of(user))
    with reporting(as_json) as out, Client.as_user() if user is None else Client.as_admin() as api:
        credits = api.get(*path).body
        rows = [
            (
                grant["ref"],
                grant["kind"],
                number(grant["left"]),
                number(grant["amount"]),
                when(grant["created_at"]),
                when(grant["expires_at"]) or "never",
            )
            for grant in credits["grants"]
        ]
        heads = ("ref", "kind", "left", "of", "created", "expires")
        grants = table(*heads, rows=rows) if rows else "No credits."
        out.result(credits, facts(_facts(credits)), grants)


@app.command("grant", epilog=ADMIN_ENVIRONMENT)
def grant(
    user: UserArgument,
    amount: Annotated[float, typer.Argument(min=0.001, help="Credits; three decimals at most.")],
    reason: ReasonOption,
    kind: Annotated[
        GrantKind, typer.Option(help="A promotion is used before what was bought.")
    ] = GrantKind.PROMOTION,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="It expires then. Left out: never.")
    ] = None,
    ref: RefOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a user credits.

    Example: reelserve credits grant alice 20 --reason "first clips" --days 30
    """
    fields: dict[str, Any] = {"amount": amount, "reason": reason, "kind": kind}
    if days is not None:
        fields["expires_at"] = int(time.time()) + days * DAY_S
    _change(user, fields, ref, as_json)


@app.command("adjust", epilog=ADMIN_ENVIRONMENT)
def adjust(
    user: UserArgument,
    by: Annotated[
        float, typer.Option(help="Credits to add, or below 0 to take.", show_default=False)
    ],
    reason: ReasonOption,
    ref: RefOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a user's credits right, up or down. No more is taken than may be spent.

    Example: reelserve credits adjust alice --by -5 --reason "granted twice"
    """
    _change(user, {"amount": by, "reason": reason}, ref, as_json)


def _change(user: str, fields: dict[str, Any], ref: str | None, as_json: bool) -> None:
    path = ("v1", "admin", "credits", *parts_of(user))
    ref = ref or f"cli_{secrets.token_hex(12)}"
    with reporting(as_json) as out, Client.as_admin() as api:
        # Said first: if the answer is lost, this makes it safe to ask again.
        out.note(f"Under --ref {plain(ref)}.")
        changed = api.post(*path, fields={**fields, "ref": ref}).body
        out.result(changed, facts(_facts(changed["credits"])))


def _facts(credits: dict[str, Any]) -> list[tuple[str, object]]:
    return [("user", credits["user"]), *balance_of(credits)]
