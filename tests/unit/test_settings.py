"""Settings come from options, variables and a file, in this order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deployments.connections import open_redis, open_services
from deployments.payments import SANDBOX_SECRET, open_shop
from deployments.settings import StackSettings
from deployments.stack import LocalStack
from quota.payments.sandbox import Sandbox
from serving.api import ApiSettings
from serving.jobs import Cell
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
        ("payments_provider: paypal", "REELSERVE_PAYMENTS_PROVIDER"),
        ("stripe_secret_key: sk_1", "unknown setting"),
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


# The payment sandbox gives credits for nothing.

SANDBOX: dict[str, Any] = {"payments_provider": "sandbox", "redis_url": "redis://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("", False),
        ("10.0.0.7", False),
        ("localhost.example", False),
    ],
)
def test_the_sandbox_is_only_where_nobody_else_reaches_it(
    host: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SANDBOX_SECRET, "as-up-makes-one")
    settings = StackSettings.load(host=host, data_dir=tmp_path, **SANDBOX)
    if own:
        provider = open_shop(settings, cell_of(settings), "https://api.example")
        assert isinstance(provider, Sandbox)
        assert provider.webhook_url.startswith(f"{settings.url}/"), "never the public address"
        return
    with pytest.raises(ConfigError, match="--host"):
        open_shop(settings, cell_of(settings), "http://127.0.0.1:8000")
    with pytest.raises(ConfigError, match="--host"), LocalStack(_own_redis(settings)):
        pass


def cell_of(settings: StackSettings) -> Cell:
    """It asks Redis nothing."""
    return Cell(open_redis(settings))


def _own_redis(settings: StackSettings) -> StackSettings:
    return settings.model_copy(update={"redis_url": None})


@pytest.mark.asyncio
async def test_an_ingress_has_no_sandbox_unless_up_made_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in StackSettings.load(data_dir=tmp_path, **SANDBOX).environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="only where `reelserve up --payments sandbox`"):
        async with open_services(StackSettings.load(), ApiSettings()):
            pass


def test_up_keeps_the_sandbox_away_from_a_redis_of_others(tmp_path: Path) -> None:
    settings = StackSettings.load(data_dir=tmp_path / "data", **SANDBOX)
    with pytest.raises(ConfigError, match="REELSERVE_REDIS_URL"), LocalStack(settings):
        pass
    assert not (tmp_path / "data").exists()
    assert SANDBOX_SECRET not in os.environ


def test_up_names_the_mistake_in_a_file_of_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "packs.yaml"
    file.write_text("packs:\n  ten: {title: Ten, credits: 1, price_minor: free}\n")
    monkeypatch.setenv("REELSERVE_QUOTA_PACKS_FILE", str(file))
    with (
        pytest.raises(ConfigError, match=r"packs.yaml line 2, packs.ten.price_minor"),
        LocalStack(StackSettings.load(data_dir=tmp_path / "data")),
    ):
        pass
