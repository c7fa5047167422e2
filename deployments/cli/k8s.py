"""`reelserve k8s`: what of the Kubernetes manifests follows from the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, reporting
from serving.plan.errors import ConfigError

app = typer.Typer(help="Make manifests from the catalog.", no_args_is_help=True)

RENDERED = "rendered.yaml"


@app.command("render")
def render_folders(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders with settings.env and nodes.yaml, or with alerts.yaml.", exists=True
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if a file would change.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write each folder's rendered.yaml: of an overlay, the serve config and the groups of workers;
    of the monitoring, its rules.

    To be done after a change of settings.env, nodes.yaml, the catalog or rules; commit the outcome.

    Example: reelserve k8s render k8s/overlays/* k8s/components/monitoring
    """
    from deployments.k8s.render import ALERTS, render, render_rules

    with reporting(as_json) as out:
        changed = []
        for folder in folders:
            make = render_rules if (folder / ALERTS).exists() else render
            try:
                text = make(folder)
            except ConfigError as error:
                raise CliError(error.message, code=error.code) from None
            except OSError as error:
                raise CliError(f"cannot read {folder}: {error}", code="cannot_read") from error
            file = folder / RENDERED
            if not file.exists() or file.read_text() != text:
                changed.append(str(file))
                if not check:
                    file.write_text(text)
        verdict = "would change" if check else "written"
        out.result({"changed": changed}, *[f"{file}: {verdict}" for file in changed])
    if check and changed:
        raise typer.Exit(1)
