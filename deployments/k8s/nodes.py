"""The kinds of nodes an overlay has: its ``nodes.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from serving.plan.errors import ConfigError


class NodeGroup(BaseModel):
    """Pods that Ray's autoscaler starts and ends, one kind of them.

    ``node_type`` is what a catalog entry's ``placement.node_type`` asks for; several groups may
    offer the same, such as spot and on-demand nodes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$")
    node_type: str
    min: int = Field(0, ge=0, le=1000, description="pods that are always there")
    max: int = Field(ge=1, le=1000)
    cpus: int = Field(ge=1, description="of a pod")
    memory_gib: int = Field(ge=1)
    gpus: int = Field(0, ge=0, le=16)
    priority: int = Field(0, description="the highest of a node type is asked first")
    idle_s: int = Field(60, ge=0, description="a pod without replicas is kept so long")
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = Field([], description="beside the one for GPUs")

    @model_validator(mode="after")
    def _ordered(self) -> NodeGroup:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def load_nodes(file: Path) -> Sequence[NodeGroup]:
    """The groups of a file; :class:`ConfigError` names it and the field."""
    try:
        groups = TypeAdapter(list[NodeGroup]).validate_python(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {where}: {first['msg']}") from error
    names = [group.name for group in groups]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{file}: two groups are called {twice[0]}")
    return groups
