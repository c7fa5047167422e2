"""Whether and by what pools are scaled, from ``REELSERVE_AUTOSCALE_…``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat
from pydantic_settings import BaseSettings, SettingsConfigDict


class AutoscaleSettings(BaseSettings):
    """What the controller needs to know beside the catalog's ``scaling``."""

    # An empty variable, as compose files write them, is none.
    model_config = SettingsConfigDict(
        env_prefix="REELSERVE_AUTOSCALE_", extra="forbid", env_ignore_empty=True
    )

    enabled: bool = Field(True, description="false: each pool has placement.replicas, always")
    prometheus_url: str | None = Field(
        None, description="the Prometheus that scrapes the ingress; without it, we do ourselves"
    )
    prometheus_matchers: dict[str, str] = Field(
        {}, description="labels that tell this cell's series from another's, as JSON"
    )
    exporter_url: str | None = Field(
        None, description="where the ingress's metrics are; default: the stack's own port"
    )
    triton_exporter_urls: list[str] = Field(
        [],
        description="where Triton servers' metrics are, as JSON; default: port 8002 of each server "
        "that the catalog scales",
    )
    gpus_max: PositiveFloat | Literal["cluster"] | None = Field(
        None,
        description="of all pools; cluster: as many as it has, where nobody adds any",
    )
    cpus_max: PositiveFloat | None = Field(None, description="of all pools")
