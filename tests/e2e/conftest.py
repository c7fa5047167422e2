"""One stack that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stacks import Stack, up

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before the one that reads the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole stacks go one after another, in one process: two would fight for the same cores."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("e2e"))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with up(tmp_path_factory.mktemp("stack") / "data") as running:
        yield running
