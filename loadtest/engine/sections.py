"""A report that is made section by section and kept as it comes: whoever ends it early, or runs out
of time or luck, has what was found before."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.engine.attention import in_short


class Sections:
    """``value`` is the report so far; after every section it is written to ``out``, whole or not at
    all. No section begins after ``budget_s``; one that raises is recorded, and others go on."""

    def __init__(
        self,
        value: dict[str, Any],
        tell: Callable[[str], None],
        *,
        out: Path | None = None,
        budget_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.value = value
        self._tell = tell
        self._out = out
        self._clock = clock
        self._began = clock()
        self._budget_s = budget_s
        value["sections"] = {}

    def expired(self) -> bool:
        return self._clock() - self._began >= self._budget_s

    def run(self, name: str, find: Callable[[], Any]) -> Any:
        """What ``find`` gives, which is also in the report under that name; None if it gives
        nothing, for the reason in ``sections``."""
        if self.expired():
            self._close(name, "skipped", 0.0, error="no time left")
            return None
        began = self._clock()
        try:
            found = find()
        except Exception as error:
            self._close(name, "failed", self._clock() - began, error=in_short(error))
            return None
        self.value[name] = found
        self._close(name, "done", self._clock() - began)
        return found

    def _close(self, name: str, state: str, took_s: float, **more: str) -> None:
        self.value["sections"][name] = {"state": state, "took_s": round(took_s, 2), **more}
        self._tell(f"{name}: {state} in {took_s:.1f} s {more.get('error', '')}".rstrip())
        self.write()

    def write(self) -> None:
        if self._out is None:
            return
        beside = self._out.with_name(self._out.name + ".part")
        beside.write_text(json.dumps(self.value, indent=1))
        os.replace(beside, self._out)
