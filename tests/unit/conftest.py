"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripted import KEY, Script, answering


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Script]:
    """A server with an empty script. The command line is pointed at it, in an empty folder."""
    script = Script()
    with answering(script):
        monkeypatch.setenv("REELSERVE_URL", script.url)
        monkeypatch.setenv("REELSERVE_API_KEY", KEY)
        monkeypatch.setenv("REELSERVE_ADMIN_KEY", "rsk_admin_" + "d" * 40)
        monkeypatch.chdir(tmp_path)
        yield script
