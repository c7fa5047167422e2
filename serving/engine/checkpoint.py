"""A clip's state at a step boundary, as bytes that can be trusted.

A checkpoint is ``MAGIC``, a version, the 128-bit XXH3 of the rest, and a safetensors file whose
metadata carries one JSON header. Nothing in it is executed when it is read. The checksum finds
damage, not forgery: who can write to the store can make one.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load

from serving.models.family import Denoising
from serving.plan.clip import ClipSpec
from serving.plan.errors import CheckpointCorrupt, CheckpointForeign

MAGIC = b"RSCKPT"
VERSION = 2
_HEAD = struct.Struct(f"<{len(MAGIC)}sH16s")
_LATENTS = "latents"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Snapshot:
    """What a run needs to go on after ``step`` steps. Tensors are on the CPU and nobody else's.

    ``fingerprint`` names the loaded model that made it. ``solver`` is the scheduler's state as
    JSON, in which ``{"$tensor": name, …}`` stands for a tensor.
    """

    spec: ClipSpec
    step: int
    fingerprint: str
    tensors: Mapping[str, torch.Tensor]
    solver: Mapping[str, Any]
    copied: torch.cuda.Event | None = field(default=None, compare=False, repr=False)

    def wait(self) -> None:
        """Until the tensors have arrived: a GPU copies them while it goes on computing."""
        if self.copied is not None:
            self.copied.synchronize()

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Copier:
    """Copies tensors to the CPU; those of a GPU on a stream beside the one that computes.

    The copies are pinned, and each thread has a stream of its own. Nobody may write to the
    originals before :attr:`Snapshot.copied`: a step replaces the latents and the solver's tensors,
    it does not change them.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cuda:
            return tensor.detach().to("cpu", copy=True).contiguous()
        stream = self._stream
        if stream is None:
            stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
            self._thread.stream = stream
        source = tensor.detach().contiguous()
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            host.copy_(source, non_blocking=True)
        source.record_stream(stream)
        return host

    def mark(self) -> torch.cuda.Event | None:
        """When everything this thread copied so far has arrived; None if it has."""
        return None if self._stream is None else self._stream.record_event()

    @property
    def _stream(self) -> torch.cuda.Stream | None:
        return getattr(self._thread, "stream", None)


def capture(run: Denoising, fingerprint: str, copy: Copier | None = None) -> Snapshot:
    """Copy a run's state to the CPU, on the engine's thread, between two steps."""
    copy = copy or Copier()
    tensors = {_LATENTS: copy(run.latents)}
    pristine = run.pristine_scheduler
    solver = {
        name: _encode(value, name, tensors, copy)
        for name, value in vars(run.scheduler).items()
        if name not in pristine or not _same(value, pristine[name])
    }
    return Snapshot(run.spec, run.step, fingerprint, tensors, solver, copy.mark())


def restore(snapshot: Snapshot, run: Denoising) -> None:
    """Put a freshly begun run where the snapshot was taken."""
    snapshot.wait()
    device = run.latents.device
    run.latents = snapshot.tensors[_LATENTS].to(device)
    run.step = snapshot.step
    for name, value in snapshot.solver.items():
        setattr(run.scheduler, name, _decode(value, snapshot.tensors, device))


def pack(snapshot: Snapshot) -> bytes:
    """The snapshot as a checkpoint. May run on any thread."""
    snapshot.wait()
    header = json.dumps(
        {
            "spec": snapshot.spec.model_dump_json(),
            "step": snapshot.step,
            "fingerprint": snapshot.fingerprint,
            "solver": snapshot.solver,
        }
    )
    payload = _safetensors(snapshot.tensors, header)
    checksum = xxhash.xxh3_128()  # SHA-256 took 30 times as long, of a core steps could use
    for part in payload:
        checksum.update(part)
    return b"".join([_HEAD.pack(MAGIC, VERSION, checksum.digest()), *payload])


def _safetensors(tensors: Mapping[str, torch.Tensor], header: str) -> list[bytes | memoryview]:
    """The parts of a safetensors file (github.com/huggingface/safetensors, "Format").

    The library's writer copies everything twice while steps wait for the core it takes; these are
    views. Its reader checks them.
    """
    layout: dict[str, Any] = {"__metadata__": {"header": header}}
    views = []
    end = 0
    for name, tensor in tensors.items():
        views.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        start, end = end, end + tensor.nbytes
        layout[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *views]


def unpack(data: bytes, spec: ClipSpec, fingerprint: str) -> Snapshot:
    """Read a checkpoint of this request for this loaded model.

    Raises :class:`CheckpointCorrupt` if the bytes are not what was written, and
    :class:`CheckpointForeign` if they are but belong to something else.
    """
    try:
        magic, version, checksum = _HEAD.unpack_from(data)
    except struct.error:
        raise CheckpointCorrupt(f"a checkpoint of {len(data)} bytes is cut short") from None
    if magic != MAGIC:
        raise CheckpointCorrupt("this is no checkpoint")
    if version != VERSION:
        raise CheckpointForeign(f"checkpoint version {version}; this engine reads {VERSION}")
    payload = data[_HEAD.size :]
    if xxhash.xxh3_128_digest(payload) != checksum:
        raise CheckpointCorrupt("the checkpoint's checksum is wrong")
    tensors, header = _read(payload)
    if header["fingerprint"] != fingerprint:
        raise CheckpointForeign(
            f"made by a model with fingerprint {header['fingerprint']}; this one is {fingerprint}"
        )
    if header["spec"] != spec.model_dump_json():
        raise CheckpointForeign("made for another request")
    return Snapshot(spec, header["step"], fingerprint, tensors, header["solver"])


def _read(payload: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        length = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
        return load(payload), json.loads(metadata["header"])
    except (SafetensorError, ValueError, KeyError) as error:  # pragma: no cover
        raise CheckpointCorrupt(f"the checkpoint cannot be read: {error}") from error


def _same(value: Any, before: Any) -> bool:
    if isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor):
        return value is before
    if isinstance(value, list) and isinstance(before, list):
        return len(value) == len(before) and all(map(_same, value, before))
    if isinstance(value, np.ndarray) or isinstance(before, np.ndarray):
        return value is before
    return type(value) is type(before) and bool(value == before)


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor], copy: Copier) -> Any:
    """``value`` as JSON; its tensors go to ``tensors`` under names that begin with ``name``."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case torch.Tensor():
            tensors[name] = copy(value)
            # Schedulers keep some tensors on the CPU on purpose.
            return {"$tensor": name, "device": value.device.type}
        case torch.Generator():
            tensors[name] = value.get_state()
            return {"$generator": name, "device": value.device.type}
        case np.ndarray():
            tensors[name] = torch.from_numpy(value.copy())
            return {"$array": name}
        case np.generic():
            return value.item()
        case list() | tuple():
            items = [_encode(item, f"{name}.{i}", tensors, copy) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
    raise TypeError(f"the solver's {name} is a {type(value).__name__}, which has no place here")


def _decode(value: Any, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    match value:
        case {"$tensor": name, "device": kind}:
            return tensors[name].to("cpu" if kind == "cpu" else device)
        case {"$generator": name, "device": kind}:
            generator = torch.Generator(kind if kind == "cpu" else device)
            generator.set_state(tensors[name])
            return generator
        case {"$array": name}:
            return tensors[name].numpy()
        case {"$tuple": items}:
            return tuple(_decode(item, tensors, device) for item in items)
        case list():
            return [_decode(item, tensors, device) for item in value]
    return value
