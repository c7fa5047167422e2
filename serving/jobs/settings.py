"""Bounds of the queue, from ``REELSERVE_JOBS_…``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class JobSettings(BaseSettings):
    """What bounds the queue's memory, and how long a job is tried, waits and is kept."""

    model_config = SettingsConfigDict(env_prefix="REELSERVE_JOBS_", extra="forbid")

    queue_max: int = Field(10_000, ge=1, description="jobs that may wait for one model")
    attempts_max: int = Field(3, ge=1, description="lost replicas before a job is given up")
    lease_s_min: float = Field(
        15.0, ge=0.1, description="shortest lease; longer where the model's steps are long"
    )
    inline_max: int = Field(
        1_000, ge=1, description="clips of one model that may be streamed at once, as they are made"
    )
    inline_own: int = Field(16, ge=1, description="and by one user")
    inline_retention_s: int = Field(
        3600, ge=1, description="the record of one that ended is kept this long"
    )
    quantum_s: float = Field(
        1.0, ge=0, description="a running job is not preempted before it had its slot this long"
    )
    queue_ttl_s: int = Field(24 * 3600, ge=1, description="a job that waited this long expires")
    retention_s: int = Field(
        7 * 24 * 3600, ge=1, description="an ended job and its files are kept this long"
    )
    garbage_s: int = Field(60, ge=0, description="files nobody needs are removed after this long")
