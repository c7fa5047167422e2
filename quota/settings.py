"""Where tiers and packs are, and how long a repeated request is one, from ``REELSERVE_QUOTA_…``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class QuotaSettings(BaseSettings):
    """What an ingress needs to know to decide who may submit."""

    # An empty variable, as compose files write them, is none.
    model_config = SettingsConfigDict(
        env_prefix="REELSERVE_QUOTA_", extra="forbid", env_ignore_empty=True
    )

    tiers_file: Path | None = Field(None, description="instead of the one that comes with the code")
    packs_file: Path | None = Field(None, description="instead of the one that comes with the code")
    retry_window_s: float = Field(
        30, ge=0, le=3600, description="an identical POST, repeated by its client, is the same job"
    )
    idempotency_s: int = Field(
        24 * 3600, ge=1, description="the first answer to an Idempotency-Key is kept this long"
    )

    @property
    def tiers_path(self) -> Path:
        """The file that is in force."""
        return _file(self.tiers_file, "tiers.yaml")

    @property
    def packs_path(self) -> Path:
        """The file that is in force."""
        return _file(self.packs_file, "packs.yaml")


def _file(given: Path | None, shipped: str) -> Path:
    return Path(str(files("quota") / shipped)) if given is None else given.expanduser()
