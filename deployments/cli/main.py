"""The `reelserve` command, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from deployments.cli import (
    autoscale,
    bench,
    credits,
    jobs,
    k8s,
    keys,
    ledger,
    loadtest,
    models,
    queue,
    tiers,
    users,
)
from deployments.cli.output import USER_ENVIRONMENT
from deployments.cli.repair import repair
from deployments.cli.status import status
from deployments.cli.submit import submit
from deployments.cli.up import up
from deployments.cli.usage import usage

# Plain tracebacks: a pretty one is for the author of a script, not for its user's log.
app = typer.Typer(
    name="reelserve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=(
        "Results go to stdout, progress and errors to stderr; every command has --json.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n" + USER_ENVIRONMENT
    ),
)
app.command()(up)
app.command()(repair)
app.command(epilog=USER_ENVIRONMENT)(status)
app.command(epilog=USER_ENVIRONMENT)(submit)
app.command(epilog=USER_ENVIRONMENT)(usage)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(users.app, name="users")
app.add_typer(tiers.app, name="tiers")
app.add_typer(credits.app, name="credits")
app.add_typer(ledger.app, name="ledger")
app.add_typer(queue.app, name="queue")
app.add_typer(autoscale.app, name="autoscale")
app.add_typer(loadtest.app, name="loadtest")
app.add_typer(bench.app, name="bench")
app.add_typer(k8s.app, name="k8s")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"reelserve {version('reelserve')}")
        raise typer.Exit


@app.callback()
def reelserve(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """A self-hosted cluster that generates video, with an OpenAI-shaped API.

    Start one and make a clip:
      reelserve up
      export REELSERVE_API_KEY=…     (up prints the line)
      reelserve submit "a red ball rolls to the right"

    `reelserve COMMAND --help` explains each.
    """


def main() -> None:
    """The console script."""
    app(prog_name="reelserve")


if __name__ == "__main__":
    main()
