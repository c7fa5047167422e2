"""How a node that is to go tells its replicas, whatever has become of Ray: through a folder.

On Kubernetes a pod is ended by a signal that Ray answers by ending everything, at once. The pod's
preStop hook comes first: it runs this module, which writes a word into a folder that the replicas
of the node watch, and waits until each has handed its jobs back. So a drained node, a spot notice
and a deleted cluster are a yield like any other.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.settings import StackSettings

WORD = "leave"
LOOK_EVERY_S = 0.2
LINGER_S = 5.0
"""For how long a node is still sent requests: whoever balances them learns a moment later."""


@contextmanager
def here(folder: Path, replica: str) -> Iterator[None]:
    """While this is open, a node that leaves waits for ``replica``; but not if it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{replica}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


async def told_to_leave(folder: Path) -> None:
    """Returns once the node is to go."""
    while not (folder / WORD).exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(LOOK_EVERY_S)


def leave(folder: Path, linger_s: float = LINGER_S) -> None:
    """Tell every replica of this node, and wait until all have left, or died, and for
    ``linger_s`` at least. Kubernetes' grace period is what bounds it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WORD).touch()
    time.sleep(linger_s)
    for file in folder.glob("*.lock"):
        with file.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)


if __name__ == "__main__":
    if (told := StackSettings.load().leave_dir) is not None:
        leave(told)
