"""From the package to the models folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from serving.plan.errors import ConfigError

WEIGHTS = Path(__file__).parent / "weights"


def install(name: str, folder: Path) -> Path:
    """Copy the checkpoint ``name``, such as ``demo-wan``, to ``folder`` and return that.

    All or nothing: what is interrupted leaves no folder behind. An earlier checkpoint is replaced;
    anything else that is there raises :class:`ConfigError`.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "model_index.json").is_file():
        raise ConfigError(f"{folder} holds something that is not a checkpoint")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shutil.copytree(WEIGHTS / name, scratch, dirs_exist_ok=True)
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
