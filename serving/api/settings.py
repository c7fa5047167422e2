"""Limits and switches of the API, from ``REELSERVE_API_…``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """Every bound of a request. The defaults suit one machine and a public frontend."""

    model_config = SettingsConfigDict(env_prefix="REELSERVE_API_", extra="forbid")

    body_bytes_max: int = Field(1 << 20, ge=1024, description="larger bodies are refused unparsed")
    list_limit_max: int = Field(100, ge=1)
    checkouts_per_hour: int = Field(60, ge=1, description="that one user may open")
    speech_s_max: int = Field(
        3600, ge=1, description="a listener who has not taken all of it by then is cut off"
    )
    presign_s: int = Field(900, ge=10, description="life of a redirect to the object store")
    content_url_s: int = Field(3600, ge=60, description="life of a signed content URL, at least")
    public_url: str | None = Field(
        None, description="what clients reach us by, when a gateway hides it from us"
    )
    cors_origins: list[str] = Field(
        [], description='origins whose pages may call the API; ["*"] for any'
    )
