"""`reelserve models`: what is served, and the demo checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.cli.client import Client
from deployments.cli.errors import CliError
from deployments.cli.output import USER_ENVIRONMENT, JsonOption, reporting, table
from deployments.demo_models import install
from serving.plan.catalog import HubWeights, Model
from serving.plan.errors import ConfigError

app = typer.Typer(help="See what is served; install the demo model.", no_args_is_help=True)

DEMO = "demo-wan"


@app.command("list", epilog=USER_ENVIRONMENT)
def list_models(as_json: JsonOption = False) -> None:
    """List the models served, with what each of them can make. Defaults carry a star.

    Examples:
      reelserve models list
      reelserve models list --json | jq '.data[0].guidance_scale'
    """
    with reporting(as_json) as out, Client.as_user() as api:
        models = api.get("v1", "models").body
        rows = [
            (
                model["id"],
                ", ".join(model["aliases"]),
                _choices(model["sizes"], model["default_size"]),
                _choices(model["seconds"], model["default_seconds"]),
                _range(model["steps"]),
            )
            for model in models["data"]
            if model["modality"] == "video"
        ]
        tables = [table("id", "aliases", "sizes", "seconds", "steps", rows=rows)]
        spoken = [
            (
                model["id"],
                ", ".join(model["aliases"]),
                ", ".join(model["formats"]),
                _range(model["speed"]),
                f"{model['input_chars_max']:,}",
            )
            for model in models["data"]
            if model["modality"] == "speech"
        ]
        if spoken:
            tables.append(table("id", "aliases", "formats", "speed", "characters", rows=spoken))
        out.result(models, *tables)


def _choices(allowed: list[Any], default: Any) -> str:
    return ", ".join(f"{value}*" if value == default else str(value) for value in allowed)


def _range(limits: Mapping[str, Any]) -> str:
    return f"{limits['min']} to {limits['max']}, {limits['default']}*"


@app.command(
    "install-demo",
    epilog="Environment: REELSERVE_DATA_DIR (default ~/.local/share/reelserve), "
    "REELSERVE_MODELS_DIR (default: models in the data directory).",
)
def install_demo(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to put it, instead of demo-wan in the models folder."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The data directory, as of `reelserve up`.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the checkpoint that is in --dir.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put the demo checkpoint, which comes with Reelserve, where models are loaded from.

    `reelserve up` does this by itself where there is none. One that is there already is
    replaced. Prints the folder.

    Example: reelserve models install-demo --dir /srv/models/demo-wan
    """
    with reporting(as_json) as out:
        target = folder if folder is not None else _default_folder(data_dir)
        target = target.expanduser().resolve()
        if folder is not None and not force:
            _require_unused(target)
        _install(target)
        out.result({"model": DEMO, "folder": str(target)}, str(target))


@app.command(
    "fetch",
    epilog="Environment: REELSERVE_MODELS, REELSERVE_MODELS_DIR, REELSERVE_CATALOG_DIRS as of "
    "`reelserve up`; HF_HOME and HF_TOKEN as of the model hub.",
)
def fetch(as_json: JsonOption = False) -> None:
    """Bring the checkpoints of every model that is served here, before a replica needs them.

    What is there already is left as it is. Of a folder that the catalog names, only the demo's can
    be brought; any other must be there. Prints each model's folder.

    Example: REELSERVE_MODELS='["wan2.1-t2v-1.3b"]' reelserve models fetch
    """
    from deployments.settings import StackSettings

    with reporting(as_json) as out:
        try:
            settings = StackSettings.load()
            models = settings.catalog().models.values()
            folders = {each.id: _fetch(each, settings.models_folder) for each in models}
        except ConfigError as error:
            raise CliError(error.message, code=error.code) from None
        out.result(folders, *[f"{model}: {folder}" for model, folder in folders.items()])


def _fetch(model: Model, models_dir: Path) -> str:
    """Its folder, once its checkpoint is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    weights = model.weights
    if isinstance(weights, HubWeights):
        try:
            return str(snapshot_download(weights.hub, revision=weights.revision))
        except (HfHubHTTPError, OSError) as error:
            raise CliError(
                f"model '{model.id}': cannot fetch {weights.hub}: {error}", code="cannot_fetch"
            ) from error
    folder = Path(weights.path.format(models_dir=models_dir)).expanduser()
    if model.id == DEMO and not (folder / "model_index.json").is_file():
        _install(folder)
    if not (folder / "model_index.json").is_file():
        raise CliError(
            f"model '{model.id}': there is no checkpoint in {folder}", code="no_checkpoint"
        )
    return str(folder)


def _default_folder(data_dir: Path | None) -> Path:
    from deployments.settings import StackSettings

    try:
        return StackSettings.load(data_dir=data_dir).models_folder / DEMO
    except ConfigError as error:
        raise CliError(error.message, code=error.code) from None


def _require_unused(folder: Path) -> None:
    """Installing replaces the folder, so one that holds anything is somebody's."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CliError(
            f"{folder} is not empty; --force replaces a checkpoint that is there.",
            code="folder_not_empty",
        )


def _install(folder: Path) -> None:
    try:
        install(DEMO, folder)
    except ConfigError as error:
        raise CliError(error.message, code=error.code) from None
    except OSError as error:
        raise CliError(f"cannot write {folder}: {error}", code="cannot_write") from error
