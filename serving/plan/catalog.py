"""The catalog: which models there are, and what each of them can make.

One YAML file per model, under ``deployments/catalog/``; an operator may add a folder of their
own, whose entries replace ours or, with ``changes``, change fields of them. A model is declared
here once and the API, the replicas and the placement all read it. Every mistake is a
:class:`ConfigError` that names the file and the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from serving.plan.classes import DEFAULT_POLICIES, ClassPolicy, ServiceClass
from serving.plan.errors import ConfigError, InvalidRequest

SIZE = re.compile(r"^([1-9]\d{0,4})x([1-9]\d{0,4})$")


def parse_size(text: str) -> tuple[int, int]:
    """``"1280x720"`` as (width, height) in pixels; ValueError when it is not a size."""
    match = SIZE.match(text)
    if not match:
        raise ValueError(f"'{text}' is not a size; write WIDTHxHEIGHT, such as 1280x720")
    return int(match[1]), int(match[2])


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubWeights(_Strict):
    """A repository on the model hub (or a mirror of it)."""

    hub: str
    revision: str | None = None


class PathWeights(_Strict):
    """A folder written by ``save_pretrained``. ``{models_dir}`` stands for the models folder."""

    path: str


class LoadOptions(_Strict):
    """How the weights are put on the device."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    offload: Literal["none", "model", "sequential", "group"] = "none"
    attention: str | None = Field(
        None, description="a diffusers attention backend, such as _native_cudnn or flash"
    )
    vae_tiling: bool = False
    decode: Literal["auto", "inline", "beside"] = Field(
        "auto",
        description="decode between steps, or on a thread beside them; auto is beside on a GPU",
    )
    compile: bool = Field(
        False, description="compile the transformer's blocks, once for each shape it meets"
    )
    pinned_memory: bool = Field(
        True, description="under offload: group, keep the weights in page-locked memory"
    )
    prompt_tokens: int = Field(512, ge=1, le=4096, description="every prompt is padded to this")
    text_states_gb: float = Field(
        2.0,
        ge=0,
        description="device memory for prompts' keys and values; 0 computes them in every step",
    )
    prompt_cache_mb: int = Field(
        256, ge=0, description="host memory for embeddings of prompts seen lately; 0 keeps none"
    )

    @model_validator(mode="after")
    def _compiles_whole_blocks(self) -> LoadOptions:
        if self.compile and self.offload in ("sequential", "group"):
            raise ValueError(
                f"compile needs offload none or model: offload {self.offload} moves weights "
                f"inside the blocks, which would break them into many small graphs"
            )
        return self

    @property
    def text_states_bytes(self) -> int:
        """0 under offload, where weights are not at hand outside of a forward."""
        return int(self.text_states_gb * 1e9) if self.offload == "none" else 0

    @property
    def chunked_decode(self) -> bool:
        """Whether a clip can be decoded piece by piece: not below offload hooks or tiling.

        ``offload: group`` leaves the VAE on the device.
        """
        return self.offload in ("none", "group") and not self.vae_tiling

    def decode_beside(self, device_type: str) -> bool:
        """Whether to decode on a thread of its own. A CPU's cores are busy with steps anyway."""
        if self.decode == "auto":
            return self.chunked_decode and device_type == "cuda"
        return self.decode == "beside"

    @model_validator(mode="after")
    def _decode_possible(self) -> LoadOptions:
        if self.decode == "beside" and not self.chunked_decode:
            raise ValueError("decode: beside is not possible with offload or vae_tiling")
        return self


class Size(_Strict):
    """An output size. ``render`` is the size the model works at when that is smaller."""

    render: Annotated[tuple[int, int], BeforeValidator(lambda v: _size(v))]


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


class IntRange(_Strict):
    default: int
    min: int
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if not self.min <= self.default <= self.max:
            raise ValueError(f"default {self.default} is not within {self.min} to {self.max}")
        return self


class FloatRange(_Strict):
    default: float
    min: float
    max: float

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if not self.min <= self.default <= self.max:
            raise ValueError(f"default {self.default} is not within {self.min} to {self.max}")
        return self


InputName = Literal["first_frame", "last_frame", "video"]
Need = Literal["required", "optional"]


class VideoLimits(_Strict):
    """What clips the model makes. The first size and the first duration are the defaults."""

    sizes: dict[str, Size | None] = Field(min_length=1)
    seconds: list[int] = Field(min_length=1)
    fps: IntRange
    steps: IntRange
    guidance_scale: FloatRange
    guidance_scale_2: float | None = Field(
        None, ge=0, description="of the low-noise transformer of two; else the request's"
    )
    inputs: dict[InputName, Need] = Field({}, description="what it starts from besides text")
    prompt_chars_max: int = Field(2000, ge=1, le=100_000)
    frame_multiple: int = Field(4, ge=1, description="frames the VAE packs into one latent frame")
    size_multiple: int = Field(16, ge=1, description="pixels per token side, VAE times patch")

    @model_validator(mode="after")
    def _renderable(self) -> VideoLimits:
        for name, size in self.sizes.items():
            width, height = size.render if size else parse_size(name)
            if width % self.size_multiple or height % self.size_multiple:
                raise ValueError(
                    f"size {name}: {width}x{height} is not a multiple of {self.size_multiple}; "
                    f"give a 'render' size that is"
                )
            if parse_size(name)[0] % 2 or parse_size(name)[1] % 2:
                raise ValueError(f"size {name}: H.264 needs even sides")
        return self

    @property
    def default_size(self) -> str:
        return next(iter(self.sizes))

    @property
    def default_seconds(self) -> int:
        return self.seconds[0]

    def render_size(self, size: str) -> tuple[int, int]:
        """(width, height) the model works at for an output ``size`` of this catalog entry."""
        declared = self.sizes[size]
        return declared.render if declared else parse_size(size)


class CostTable(_Strict):
    """Seconds on the reference device: the estimate of a job before any was measured."""

    encode_s: float = Field(gt=0, description="text encoding and set-up, per job")
    step_s: float = Field(gt=0, description="fixed part of one denoising step with guidance")
    step_s_per_ktoken: float = Field(ge=0, description="and for each thousand latent tokens")
    decode_s_per_mpixel: float = Field(ge=0, description="VAE decode, per million rendered pixels")
    deliver_s_per_mpixel: float = Field(ge=0, description="H.264 and store, per million output")


class PriceTable(_Strict):
    """Milli-credits of a clip; ``serving/plan/price.py`` has the formula."""

    per_s: int = Field(
        1000, ge=0, description="for each second of a clip of the default size and steps"
    )
    minimum: int = Field(1000, ge=0, description="for a clip, at least")


class CheckpointPolicy(_Strict):
    """When a running clip's state is saved. Its final latents are saved always."""

    every_s: float = Field(10.0, gt=0, description="at the first step boundary after this long")
    every_steps: int | None = Field(None, ge=1, description="and after every this many steps")
    bytes_per_s: float = Field(100e6, gt=0, description="at most, per replica, on average")


class PreviewPolicy(_Strict):
    """When a running clip shows what it will be. Never after its last step."""

    every_s: float = Field(2.0, gt=0, description="at the first step boundary after this long")
    every_steps: int | None = Field(None, ge=1, description="and after every this many steps")


class BatchPolicy(_Strict):
    """How many rows one forward of the transformer has. A job with guidance is two rows.

    Under ``strict`` every forward of a shape has exactly that many rows, filled up where there are
    fewer: then a job's bits depend on neither its neighbours nor its place among them. Under
    ``fast`` a forward has the smallest power of two that holds its rows, so a lone job costs less
    and its bits may depend on what else ran.
    """

    rows: int = Field(2, ge=2, le=256, description="rows of a forward, a power of two")
    rows_from_tokens: dict[int, int] = Field(
        {}, description="rows where a row has at least this many tokens; the largest that fits"
    )
    reproducible: Literal["strict", "fast"] = "strict"

    @model_validator(mode="after")
    def _powers_of_two(self) -> BatchPolicy:
        for rows in (self.rows, *self.rows_from_tokens.values()):
            if rows < 2 or rows & (rows - 1):
                raise ValueError(f"{rows} rows: the bits of a row are its own only in powers of 2")
        return self

    def rows_max(self, tokens: int) -> int:
        """Rows a forward of this shape holds at most."""
        fitting = [least for least in self.rows_from_tokens if least <= tokens]
        return self.rows_from_tokens[max(fitting)] if fitting else self.rows

    def bucket(self, tokens: int, rows: int) -> int:
        """Rows a forward of this shape has when it carries ``rows``."""
        if self.reproducible == "strict":
            return self.rows_max(tokens)
        return 1 << (rows - 1).bit_length()


class Placement(_Strict):
    """How many replicas run and what each of them takes."""

    replicas: int = Field(1, ge=1, le=1024)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    node_type: str = Field(
        "cpu-only",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$",
        description="where they go on a cluster: nodes that offer Ray a resource of this name",
    )
    slots: int = Field(1, ge=1, le=64, description="jobs resident in one replica at once")


class ScalingPolicy(_Strict):
    """How a pool's number of replicas follows its work; ``docs/autoscaling.md`` has the formula.

    With a buffer of 0 and ``min_replicas`` of 0, a pool that has nothing to do goes to zero.
    """

    min_replicas: int = Field(0, ge=0, le=1024, description="always there")
    max_replicas: int = Field(ge=1, le=1024, description="at most")
    buffer: int = Field(0, ge=0, le=1024, description="beyond what the work needs, idle too")
    keep_alive_s: float = Field(60.0, ge=0, description="one not needed is kept so long")
    scaling_delay_s: float = Field(0.0, ge=0, description="none is added before so long a need")
    cold_start_s: float = Field(
        60.0, gt=0, description="from the decision to the first lease, until it is measured"
    )

    @model_validator(mode="after")
    def _ordered(self) -> ScalingPolicy:
        if self.min_replicas + self.buffer > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} and buffer {self.buffer} do not fit into "
                f"max_replicas {self.max_replicas}"
            )
        return self


class ServerScaling(ScalingPolicy):
    """The same of a model on a server that somebody else scales. One that is not there is asked for
    nothing, so nobody would see that it is needed."""

    min_replicas: int = Field(1, ge=1, le=1024, description="always there")


class Upscaler(_Strict):
    """Who makes frames twice as wide and high, where a request says ``upscale: 2``: a model of the
    kind of ``deployments/triton/upscale``. Without a ``url``, nobody does."""

    model: str = Field("upscale", min_length=1, description="its name on the server")
    url: str | None = Field(
        None, min_length=1, description="host:port of its gRPC; default: the stack's Triton server"
    )
    frames: int = Field(4, ge=1, le=64, description="of one request, at most")
    timeout_s: float = Field(30.0, gt=0, le=600, description="for these")
    patience_s: float = Field(
        120.0, ge=0, le=3600, description="while it is away; then the clip goes back to the queue"
    )
    s_per_mpixel: float = Field(gt=0, description="per million pixels that it makes")
    per_s: int = Field(
        250, ge=0, description="milli-credits for each second of a clip of the default size"
    )
    scaling: ServerScaling | None = Field(
        None, description="null: nobody is told how many it needs"
    )
    wait_s: float = Field(10.0, gt=0, le=3600, description="frames may wait for it so long")

    @property
    def pool_id(self) -> str:
        """Its name among the models of a stack, none of which is called so."""
        return f"triton/{self.model}"


class Model(_Strict):
    """One catalog entry: a pool of replicas that share a queue."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    aliases: list[str] = []
    family: Literal["wan"]
    description: str
    licence: str = ""
    weights: HubWeights | PathWeights
    load: LoadOptions = LoadOptions()
    video: VideoLimits
    cost: CostTable
    price: PriceTable = PriceTable()
    upscaler: Upscaler | None = Field(None, description="null: its clips are not upscaled")
    placement: Placement = Placement()
    scaling: ScalingPolicy | None = Field(None, description="null: always placement.replicas")
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    preview: PreviewPolicy | None = Field(PreviewPolicy(), description="null for none")
    batch: BatchPolicy = BatchPolicy()
    classes: Annotated[
        dict[ServiceClass, ClassPolicy], BeforeValidator(lambda given: with_default_classes(given))
    ] = Field(dict(DEFAULT_POLICIES), description="what jobs of each class may count on")

    @property
    def upscales(self) -> bool:
        """Whether a request may say ``upscale: 2``."""
        return self.upscaler is not None and self.upscaler.url is not None

    @model_validator(mode="after")
    def _shares_fit(self) -> Model:
        if sum(policy.share for policy in self.classes.values()) > 1 + 1e-9:
            raise ValueError("classes: their shares add up to more than 1")
        return self


def with_default_classes(given: object) -> object:
    """What a catalog entry says of a class, over what holds where it says nothing."""
    if not isinstance(given, Mapping):
        return given
    named = {str(name): value for name, value in given.items()}
    for name, policy in DEFAULT_POLICIES.items():
        said = named.get(name, {})
        if isinstance(said, Mapping):
            named[name] = {**policy.model_dump(), **said}
    return named


class Named(Protocol):
    """An entry of a catalog."""

    @property
    def id(self) -> str: ...

    @property
    def aliases(self) -> list[str]: ...


Entry = TypeVar("Entry", bound=Named)


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Each under its id and its aliases; :class:`ConfigError` for a name that two have."""
    found: dict[str, Entry] = {}
    for entry in entries:
        for name in (entry.id, *entry.aliases):
            if name in found:
                raise ConfigError(
                    f"the name '{name}' is declared by both '{found[name].id}' and '{entry.id}'"
                )
            found[name] = entry
    return found


class Catalog:
    """Models by id and by alias."""

    def __init__(self, models: Iterable[Model]) -> None:
        given = list(models)
        self._by_name = by_name(given)
        self.models = {model.id: model for model in given}

    def resolve(self, name: str) -> Model:
        """The model called ``name`` or with that alias; :class:`InvalidRequest` if none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise InvalidRequest(
                f"The model '{name[:64]}' is not served here. "
                f"Models: {', '.join(sorted(self._by_name))}.",
                code="model_not_found",
                param="model",
            ) from None

    def only(self, ids: Iterable[str]) -> Catalog:
        """A catalog of just these models, in this order; ConfigError for an unknown one."""
        chosen = []
        for name in ids:
            if name not in self.models:
                raise ConfigError(
                    f"no model '{name}' in the catalog; there are {', '.join(sorted(self.models))}"
                )
            chosen.append(self.models[name])
        return Catalog(chosen)


def load_catalog(folders: Iterable[Path]) -> Catalog:
    """Read every ``*.yaml`` of the folders. A later folder's entry replaces an earlier one's; one
    that begins with ``changes: ID`` is that entry of an earlier folder, but for the fields it has.
    """
    entries: dict[str, Model] = {}
    written: dict[str, Mapping[str, object]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"the catalog folder {folder} does not exist")
        for file in sorted(folder.glob("*.yaml")):
            raw = _changed(file, _read(file), written)
            if "speech" not in raw:  # serving/plan/speech_model.py reads those
                model = _model(file, raw)
                entries[model.id], written[model.id] = model, raw
    return Catalog(entries.values())


def _changed(
    file: Path, raw: Mapping[str, object], written: Mapping[str, Mapping[str, object]]
) -> Mapping[str, object]:
    """An entry as a whole. Each field it has replaces the other's as a whole."""
    if "changes" not in raw:
        return raw
    fields = dict(raw)
    name = str(fields.pop("changes"))
    if name not in written:
        raise ConfigError(f"{file}: changes: no model '{name}' before it")
    return {**written[name], **fields}


def load_model(file: Path) -> Model:
    """One catalog file; ConfigError names the file, the field and what is allowed."""
    return _model(file, _read(file))


def _read(file: Path) -> Mapping[str, object]:
    try:
        raw = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {error}") from error
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{file}: expected a mapping with the model's fields")
    return raw


def _model(file: Path, raw: Mapping[str, object]) -> Model:
    try:
        return Model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{file}: {where}: {first['msg']}") from error
