"""Settings come from options, variables and a file, in this order."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.settings import StackSettings
from serving.plan.errors import ConfigError


def test_options_beat_variables_beat_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("port: 1\nhost: h1\ndata_dir: /d1\n")
    monkeypatch.setenv("REELSERVE_PORT", "2")
    monkeypatch.setenv("REELSERVE_HOST", "h2")
    settings = StackSettings.load(config, port=3, host=None)
    assert (settings.port, settings.host, settings.data_dir) == (3, "h2", Path("/d1"))


def test_the_environment_carries_everything_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELSERVE_ADMIN_KEY", "secret")
    before = StackSettings.load(
        data_dir=tmp_path, catalog_dirs=[tmp_path], models=["a", "b"], redis_url="redis://x"
    )
    for name, value in before.environment().items():
        monkeypatch.setenv(name, value)
    assert StackSettings.load() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot: 1", "unknown setting 'prot'"),
        ("admin_key: x", "REELSERVE_ADMIN_KEY"),
        ("port: many", "REELSERVE_PORT"),
        ("- 1", "mapping"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=says):
        StackSettings.load(config)


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSERVE_ADMIN_KEY", "very-secret")
    monkeypatch.setenv("REELSERVE_REDIS_URL", "redis://:very-secret@x")
    assert "very-secret" not in repr(StackSettings.load())
