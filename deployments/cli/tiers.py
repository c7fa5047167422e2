"""`reelserve tiers`: what each kind of user may do. For the operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from deployments.cli.client import Client
from deployments.cli.errors import CliError
from deployments.cli.output import ADMIN_ENVIRONMENT, JsonOption, reporting, table, when
from serving.plan.errors import ConfigError

app = typer.Typer(
    help="Check a file of tiers, see which are in force (operator).", no_args_is_help=True
)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A YAML file of tiers.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Find the mistakes in a file, or print what each of its tiers allows. Needs no server.

    Exit code 1: it has mistakes; each is named with its line and field.

    Example: reelserve tiers check tiers.yaml && kubectl apply -f .
    """
    from quota.tiers import load_tiers

    with reporting(as_json) as out:
        try:
            tiers = load_tiers(file).model_dump(mode="json", by_alias=True)
        except ConfigError as error:
            raise CliError(error.message, code=error.code) from None
        out.result(tiers, _table(tiers), _common(tiers))


@app.command("show", epilog=ADMIN_ENVIRONMENT)
def show(as_json: JsonOption = False) -> None:
    """Print the tiers in force, and why the file is not if it has mistakes.

    Exit code 0 in either case: jobs are accepted.

    Examples:
      reelserve tiers show
      reelserve tiers show --json | jq .error
    """
    with reporting(as_json) as out, Client.as_admin() as api:
        tiers = api.get("v1", "admin", "tiers").body
        since = f"From {tiers['file']}, in force since {when(tiers['changed_at'])}."
        out.result(tiers, _table(tiers), _common(tiers), since)
        if tiers["error"]:
            out.note(f"The file has changed and is not in force: {tiers['error']}")


def _common(tiers: Mapping[str, Any]) -> str:
    return (
        f"* the tier of users who were given none. Days begin at midnight, {tiers['time_zone']}.\n"
        "- no limit; in a surge, as without it."
    )


def _table(tiers: Mapping[str, Any]) -> Table:
    """A row for each limit, a column for each tier: there are more limits than tiers."""
    names = list(tiers["tiers"])
    heads = [f"{name}*" if name == tiers["default_tier"] else name for name in names]
    columns = [dict(_limits(tiers["tiers"][name])) for name in names]
    rows = [(limit, *(column[limit] for column in columns)) for limit in columns[0]]
    return table("", *heads, rows=rows)


def _limits(tier: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    surge = tier["surge"] or {}
    for name, value in tier.items():
        if name != "surge":
            yield name, _cell(value)
    for name in ("generations_per_day", "class"):
        yield f"surge.{name}", _cell(surge.get(name))


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case list():
            return ", ".join(map(str, value))
        case float():
            return f"{value:.12g}"
        case _:
            return str(value)
