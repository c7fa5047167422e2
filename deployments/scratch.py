"""Folders of half-made files, each of one process."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "reelserve-clip-"


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A new one, which whoever made it cleans up."""
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-")


def remove_orphans() -> None:
    """Remove those of processes of this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            pass  # somebody else's
