"""`reelserve keys`: who may call the API. For the operator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from deployments.cli.client import Client
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, reporting, table, when

app = typer.Typer(help="Create, list, rotate and revoke API keys (operator).", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY_OR_ID", help="The key, or its id.")]

UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


@app.command("create", epilog=ADMIN_ENVIRONMENT)
def create(
    user: Annotated[str, typer.Option(help="Whom the key speaks for.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="generate, read, act-as or admin; repeatable. Left out: generate and read."
        ),
    ] = None,
    tier: Annotated[
        str | None, typer.Option(help="The user's tier from now on. Left out: as it is.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key for a user and print it, alone. It cannot be shown again.

    generate submits, cancels and deletes. read sees the user's own jobs and clips.
    act-as lets a service do these for its own users, whom it names in X-End-User.
    admin is for operators: everything under /v1/admin.

    Examples:
      export REELSERVE_API_KEY=$(reelserve keys create --user alice)
      reelserve keys create --user shop --scope generate --scope read --scope act-as
    """
    fields = {"user": user, "scopes": scope or None, "tier": tier}
    with reporting(as_json) as out, Client.as_admin() as api:
        given = {name: value for name, value in fields.items() if value is not None}
        made = api.post("v1", "admin", "keys", fields=given).body
        out.result(made, made["key"])
        out.note(
            f"Key {made['id']} speaks for {made['user']} and may {_may(made)}. "
            "It is shown only this once."
        )


@app.command("list", epilog=ADMIN_ENVIRONMENT)
def list_keys(as_json: JsonOption = False) -> None:
    """List every key without its secret. A key that was rotated shows how long the secret before
    the current one works, or worked.

    Example: reelserve keys list
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        keys = api.get("v1", "admin", "keys").body
        rows = [
            (
                key["id"],
                key["user"],
                _may(key),
                when(key["created_at"]),
                when(key["previous_works_until"]) or "",
            )
            for key in keys["data"]
        ]
        heads = ("id", "user", "may", "created", "secret before works until")
        out.result(keys, table(*heads, rows=rows) if rows else "No keys.")


@app.command("rotate", epilog=ADMIN_ENVIRONMENT)
def rotate(
    key: KeyArgument,
    grace: Annotated[
        str,
        typer.Option(
            help="How long the old secret works on: seconds, or like 90m, 24h, 7d; 0 ends it.",
            metavar="TIME",
        ),
    ] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and print the key, alone. The old secret works until the grace ends.

    If the answer does not come, rotate again: a new secret that nobody has used yet is replaced,
    and the one in use works on.

    Example: reelserve keys rotate 3fa29c01b7de --grace 7d
    """
    key_id, grace_s = _id_of(key), _seconds(grace)
    with reporting(as_json) as out, Client.as_admin() as api:
        path = ("v1", "admin", "keys", key_id, "rotate")
        made = api.post(*path, fields={"grace_s": grace_s}).body
        out.result(made, made["key"])
        old = f"works until {when(made['previous_works_until'])}" if grace_s else "has ended"
        out.note(f"The secret before {old}. The new one is shown only this once.")


@app.command("revoke", epilog=ADMIN_ENVIRONMENT)
def revoke(key: KeyArgument, as_json: JsonOption = False) -> None:
    """Refuse a key from now on.

    Example: reelserve keys revoke 3fa29c01b7de
    """
    key_id = _id_of(key)
    with reporting(as_json) as out, Client.as_admin() as api:
        answer = api.delete("v1", "admin", "keys", key_id).body
        out.result(answer, f"{key_id} revoked")


def _may(key: Mapping[str, Any]) -> str:
    return ", ".join(key["scopes"])


def _id_of(key: str) -> str:
    """The id in a key's text, ``rsk_<id>_<secret>``: a secret has no place in a URL."""
    key_id = key.split("_")[1] if key.startswith("rsk_") else key
    if not key_id.isalnum():
        raise typer.BadParameter("not a key or a key's id; `reelserve keys list` shows the ids")
    return key_id


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if match is None:
        raise typer.BadParameter("a time is seconds, or a number and s, m, h or d: 24h")
    return int(match[1]) * UNITS_S[match[2]]
