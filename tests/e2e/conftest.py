"""One stack that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stacks import Stack, up


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with up(tmp_path_factory.mktemp("stack") / "data") as running:
        yield running
