"""`reelserve keys`: who may call the API. For the operator."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.cli.client import Client
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, reporting, table, when

app = typer.Typer(help="Create, list and revoke API keys (operator).", no_args_is_help=True)


@app.command("create", epilog=ADMIN_ENVIRONMENT)
def create(
    user: Annotated[str, typer.Option(help="Whom the key speaks for.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Make a key for a user and print it, alone. It cannot be shown again.

    Example: export REELSERVE_API_KEY=$(reelserve keys create --user alice)
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        made = api.post("v1", "admin", "keys", fields={"user": user}).body
        out.result(made, made["key"])
        out.note(f"Key {made['id']} speaks for {made['user']}. It is shown only this once.")


@app.command("list", epilog=ADMIN_ENVIRONMENT)
def list_keys(as_json: JsonOption = False) -> None:
    """List every key without its secret.

    Example: reelserve keys list
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        keys = api.get("v1", "admin", "keys").body
        rows = [(key["id"], key["user"], when(key["created_at"])) for key in keys["data"]]
        out.result(keys, table("id", "user", "created", rows=rows) if rows else "No keys.")


@app.command("revoke", epilog=ADMIN_ENVIRONMENT)
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY_OR_ID", help="The key, or its id.")],
    as_json: JsonOption = False,
) -> None:
    """Refuse a key from now on.

    Example: reelserve keys revoke 3fa29c01b7de
    """
    key_id = _id_of(key)
    with reporting(as_json) as out, Client.as_admin() as api:
        answer = api.delete("v1", "admin", "keys", key_id).body
        out.result(answer, f"{key_id} revoked")


def _id_of(key: str) -> str:
    """The id in a key's text, ``rsk_<id>_<secret>``: a secret has no place in a URL."""
    key_id = key.split("_")[1] if key.startswith("rsk_") else key
    if not key_id.isalnum():
        raise typer.BadParameter("not a key or a key's id; `reelserve keys list` shows the ids")
    return key_id
