"""The data directory belongs to one process at a time: a stack, or whoever repairs it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from serving.plan.errors import ConfigError

REDIS = "redis"
"""The folder in it that its own redis-server keeps."""
AUDIT_COPY = "ledger.sqlite"
"""The copy of its ledger."""


def lock_data_dir(folder: Path) -> IO[str]:
    """Make the directory if there is none, and own it until the file that is returned is closed.

    :class:`ConfigError` if it is another's, by the number of that process, or cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"cannot use the data directory {folder}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "?"
        lock.close()
        raise ConfigError(
            f"the data directory {folder} is in use by process {owner}; "
            "stop that one, or choose another with --data-dir"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
