"""Settings of a running stack, from ``REELSERVE_…`` variables and a YAML file.

Every process of the stack reads the same variables: ``reelserve up`` resolves them once and
exports them before it starts Ray, on Kubernetes they come from the pod. So a secret never
travels through Ray, and never lies in a config file that somebody commits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from serving.plan.catalog import Catalog, Model, load_catalog
from serving.plan.errors import ConfigError
from serving.plan.served import ServedPool, served_pools
from serving.plan.speech_model import SpeechCatalog, load_speech

ENV_PREFIX = "REELSERVE_"


class StackSettings(BaseSettings):
    """What `up`, an ingress replica and a model replica need to know."""

    # An empty variable, as compose files write them, is none.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address the HTTP port listens on")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 takes a free one")
    data_dir: Path = Field(
        Path("~/.local/share/reelserve"), description="queue, clips, models and logs"
    )
    redis_url: SecretStr | None = Field(
        None, description="an external Redis; without it `up` starts its own in the data directory"
    )
    artifacts_url: str | None = Field(
        None, description="file:///folder or s3://bucket/prefix; default: the data directory"
    )
    models_dir: Path | None = Field(None, description="checkpoints; default: in the data directory")
    catalog_dirs: list[Path] = Field([], description="folders with more catalog entries")
    models: list[str] = Field(["demo-wan"], min_length=1, description="catalog ids to serve")
    speech: list[str] = Field(["espeak"], description="catalog ids that speak")
    triton_url: str | None = Field(
        None, description="host:port of a Triton server's gRPC, which speaks and upscales"
    )
    ingress_replicas: int = Field(2, ge=1, le=64, description="processes that answer HTTP")
    proxy: Literal["auto", "haproxy", "serve"] = Field(
        "auto", description="in front of them: HAProxy where there is one, else Ray Serve's own"
    )
    logical_cpus: int | None = Field(
        None, ge=1, description="of Ray; they only place replicas. Default: what the catalog asks"
    )
    logical_gpus: int | None = Field(
        None, ge=0, description="of Ray, in place of the machine's: to try placement without any"
    )
    payments_provider: Literal["none", "stripe", "sandbox"] = Field(
        "none", description="who takes the money for credits; the sandbox takes none"
    )
    logs: Literal["json", "text"] = Field(
        "json", description="of the cluster's processes: one JSON object a line, or text"
    )
    traces: Literal["off", "otlp"] = Field(
        "off", description="OpenTelemetry traces; otlp sends them where OTEL_EXPORTER_OTLP_… say"
    )
    traces_ratio: float = Field(
        1.0, ge=0, le=1, description="of the submissions that come without a trace of their own"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="where Ray exports its metrics; default: a free port"
    )
    leave_dir: Path | None = Field(
        None, description="a folder by which a node that is to go tells its replicas"
    )
    admin_key: SecretStr | None = Field(None, description="made and printed once when unset")

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> Self:
        """Settings by precedence: ``overrides`` that are not None, variables, the file, defaults.

        Raises :class:`ConfigError` that names the source and the field.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            from_env = cls().model_dump(exclude_unset=True)
            from_file = _read_yaml(config) if config else {}
            settings = cls.model_validate({**from_file, **from_env, **given})
        except SettingsError as error:
            raise ConfigError(f"{error}; lists are written as JSON") from None
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"setting '{name}' ({ENV_PREFIX}{name.upper()}): {first['msg']}"
            ) from None
        return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().resolve()})

    def environment(self) -> dict[str, str]:
        """These settings as variables, for the processes of the stack."""
        plain = self.model_dump(exclude_none=True)
        return {f"{ENV_PREFIX}{name.upper()}": _as_text(value) for name, value in plain.items()}

    def catalog(self) -> Catalog:
        """The entries this stack serves, in order; the first is the default model. An upscaler
        that names no server is at the stack's own."""
        served = load_catalog(self.catalog_folders).only(self.models).models.values()
        return Catalog(_with_upscaler_at(self.triton_url, model) for model in served)

    def speech_catalog(self) -> SpeechCatalog:
        """The entries that speak, in order; the first is the default one."""
        return load_speech(self.catalog_folders).only(self.speech)

    def served_pools(self) -> dict[str, ServedPool]:
        """What model servers do for this stack, where the catalog says how it scales."""
        speech = self.speech_catalog().models.values()
        return served_pools(self.catalog().models.values(), speech, self.triton_url)

    @property
    def catalog_folders(self) -> list[Path]:
        """Where entries are. Those of a later folder replace those of an earlier one."""
        return [Path(str(files("deployments") / "catalog")), *self.catalog_dirs]

    def catalog_identity(self) -> Mapping[str, tuple[int, ...]]:
        """Changes with every edit of the catalog's files."""
        found = {}
        for folder in self.catalog_folders:
            for file in folder.glob("*.yaml"):
                with suppress(OSError):  # it is being replaced
                    state = file.stat()
                    found[str(file)] = (state.st_ino, state.st_size, state.st_mtime_ns)
        return found

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the stack."""
        # The address that listens on all interfaces is none to connect to.
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def on_loopback(self) -> bool:
        """Whether nobody but this machine reaches the HTTP port."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def store_url(self) -> str:
        return self.artifacts_url or (self.data_dir / "artifacts").as_uri()

    @property
    def models_folder(self) -> Path:
        return (self.models_dir or self.data_dir / "models").expanduser()


def _with_upscaler_at(url: str | None, model: Model) -> Model:
    seat = model.upscaler
    if seat is None or seat.url is not None:
        return model
    return model.model_copy(update={"upscaler": seat.model_copy(update={"url": url})})


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config file {file}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping of settings")
    for name in raw:
        if name not in StackSettings.model_fields:
            raise ConfigError(
                f"{file}: unknown setting '{name}'; known: {', '.join(StackSettings.model_fields)}"
            )
        if name in ("admin_key", "redis_url"):
            raise ConfigError(f"{file}: '{name}' is a secret: set {ENV_PREFIX}{name.upper()}")
    return raw


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list):
        return json.dumps([str(item) for item in value])
    return str(value)
