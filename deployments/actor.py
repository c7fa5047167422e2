"""Which process of the cluster this is."""

from __future__ import annotations

import os

import ray


def actor_id() -> str:
    """Ray's id of this actor, as in its file of logs; the process's own where there is no Ray."""
    # Asking for the context of a process without Ray would start one.
    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    return actor or f"pid-{os.getpid()}"
