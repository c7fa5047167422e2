"""What the code at hand works for: ids that each of its log lines carries.

They belong to the current task, as ``contextvars`` do, and follow it into the tasks and threads
that it starts by ``asyncio``. Imports nothing, so that everyone may import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

Ids = Mapping[str, str | int]

NO_IDS: Ids = MappingProxyType({})

_ids: ContextVar[Ids] = ContextVar("reelserve_ids", default=NO_IDS)


def ids() -> Ids:
    """Those of the current task: of ``job_id``, ``fence``, ``attempt``, ``request_id``,
    ``trace_id`` and ``span_id`` whatever is known."""
    return _ids.get()


def bind(**more: str | int) -> None:
    """Add to them, until the :func:`bound` around this ends."""
    _ids.set({**_ids.get(), **more})


@contextmanager
def bound(**more: str | int) -> Iterator[None]:
    """Add to them for what is inside."""
    before = _ids.set({**_ids.get(), **more})
    try:
        yield
    finally:
        _ids.reset(before)
