"""`reelserve users`: who they are and which tier they have. For the operator."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deployments.cli.client import Client
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, facts, reporting, table, when

app = typer.Typer(help="List users and set their tiers (operator).", no_args_is_help=True)

UserArgument = Annotated[
    str, typer.Argument(help="The user; SERVICE/NAME for an end user of a service.")
]
DEFAULT_TIER = "the default one"


@app.command("list", epilog=ADMIN_ENVIRONMENT)
def list_users(
    limit: Annotated[int, typer.Option(min=1, help="Users on a page; 100 at most.")] = 20,
    after: Annotated[str | None, typer.Option(help="The last user of the page before.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List users, in the order they were made. End users of a service are among them once
    something was set for them.

    Example: reelserve users list
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        page = api.get("v1", "admin", "users", params={"limit": limit, "after": after}).body
        rows = [
            (user["id"], user["tier"] or DEFAULT_TIER, when(user["created_at"]))
            for user in page["data"]
        ]
        out.result(page, table("user", "tier", "created", rows=rows) if rows else "No users.")
        if page["has_more"]:
            out.note(f"More: reelserve users list --limit {limit} --after {page['last_id']}")


@app.command("show", epilog=ADMIN_ENVIRONMENT)
def show(user: UserArgument, as_json: JsonOption = False) -> None:
    """Show a user.

    Example: reelserve users show shop/ann
    """
    path = _path(user)
    with reporting(as_json) as out, Client.as_admin() as api:
        found = api.get(*path).body
        out.result(found, facts(_facts(found)))


@app.command("set", epilog=ADMIN_ENVIRONMENT)
def set_tier(
    user: UserArgument,
    tier: Annotated[str | None, typer.Option(help="A tier of the tiers file.")] = None,
    default_tier: Annotated[
        bool, typer.Option("--default-tier", help="The default tier, whichever that is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Set a user's tier, from their next request on.

    Examples:
      reelserve users set alice --tier pro
      reelserve users set shop/ann --default-tier
    """
    if (tier is None) is not default_tier:
        raise typer.BadParameter("give either --tier or --default-tier")
    path = _path(user)
    with reporting(as_json) as out, Client.as_admin() as api:
        changed = api.put(*path, fields={"tier": tier}).body
        out.result(changed, facts(_facts(changed)))


def _path(user: str) -> tuple[str, ...]:
    return ("v1", "admin", "users", *parts_of(user))


def parts_of(user: str) -> list[str]:
    """For a path, part by part: a proxy may not let an encoded "/" through."""
    parts = user.split("/")
    if "" in parts or ".." in parts or "." in parts:
        raise typer.BadParameter("a user is a NAME, an end user is SERVICE/NAME")
    return parts


def _facts(user: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("user", user["id"]),
        ("tier", user["tier"] or DEFAULT_TIER),
        ("created", when(user["created_at"])),
    ]
