"""The family ``triton``: any model behind a KServe v2 server, such as NVIDIA's Triton, over gRPC.

What it takes and gives is in the catalog, and held to the server's own metadata at start: so a
model that was replaced by another kind is found then, and not in the middle of somebody's request.
Batches are the server's to make: every caller sends its own request.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from serving.plan.errors import (
    ConfigError,
    InvalidInput,
    ModelFailed,
    ModelServerBusy,
    ModelServerLost,
    ModelServerTimeout,
    ReelserveError,
)
from serving.plan.triton import Tensor, TritonModelSpec

Arrays = Mapping[str, NDArray[Any]]

GRACE_S = 1.0
"""The connection outlives a deadline that the server was told by this, so that it can say so."""
ASK_S = 5.0
"""How long a question about the server itself may take."""
CHANNEL = [
    # A server that was restarted is found soon, and a connection that died silently is noticed.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 2),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
# So that a stream's errors come with their status, and not as text alone.
_HEADERS = {"triton_grpc_error": "true"}


class TritonServer:
    """A connection to one server, ``host:port``. Made within the event loop that uses it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = InferenceServerClient(url, channel_args=CHANNEL)

    def model(self, spec: TritonModelSpec) -> TritonModel:
        return TritonModel(self, self._client, spec)

    async def live(self) -> bool:
        """Whether it answers at all."""
        with contextlib.suppress(InferenceServerException, grpc.RpcError):
            return bool(await self._client.is_server_live(client_timeout=ASK_S))
        return False

    async def close(self) -> None:
        await self._client.close()


class TritonModel:
    """One model of a server.

    What it raises for whatever goes wrong there: :class:`ModelServerLost`, :class:`ModelServerBusy`
    and :class:`ModelServerTimeout`, after which the same call may succeed; :class:`InvalidInput`
    for what the model does not take, :class:`ModelFailed` when it fails. A model that streams is
    asked with :meth:`stream`, any other with :meth:`infer`.
    """

    def __init__(
        self, server: TritonServer, client: InferenceServerClient, spec: TritonModelSpec
    ) -> None:
        self.spec = spec
        self._server, self._client = server, client
        self._ids = itertools.count(1)

    async def check(self) -> None:
        """Hold the catalog to the server: :class:`ConfigError` names every difference."""
        name, version = self.spec.model, self.spec.version
        try:
            told = await self._client.get_model_metadata(name, version, client_timeout=ASK_S)
            config = await self._client.get_model_config(name, version, client_timeout=ASK_S)
        except (InferenceServerException, grpc.RpcError) as error:
            raise self._error(error) from error
        differences = [
            *_differences("input", self.spec.inputs, told.inputs),
            *_differences("output", self.spec.outputs, told.outputs),
        ]
        optional = {each.name for each in config.config.input if each.optional}
        differences += [
            f"it needs an input {each.name}, {_told(each)}, that the catalog does not name"
            for each in told.inputs
            if each.name not in self.spec.inputs and each.name not in optional
        ]
        streams = bool(config.config.model_transaction_policy.decoupled)
        if streams != self.spec.streaming:
            words = ("answers once", "streams (decoupled)")
            differences.append(
                f"it {words[streams]}, and the catalog says that it {words[self.spec.streaming]}"
            )
        if differences:
            raise ConfigError(
                f"the model '{name}' at {self._server.url} is not what the catalog says: "
                + "; ".join(differences)
            )

    async def ready(self) -> bool:
        """Whether it would answer now."""
        with contextlib.suppress(InferenceServerException, grpc.RpcError):
            return bool(
                await self._client.is_model_ready(
                    self.spec.model, self.spec.version, client_timeout=ASK_S
                )
            )
        return False

    async def infer(self, inputs: Arrays, *, timeout_s: float | None = None) -> dict[str, Any]:
        """One request, one answer: an array for each output. Cancelling the task cancels it there.

        ``timeout_s`` (the entry's own if None) bounds the whole call, and the server is told.
        """
        within_s = self.spec.timeout_s if timeout_s is None else timeout_s
        try:
            result = await self._client.infer(
                self.spec.model,
                self._given(inputs),
                model_version=self.spec.version,
                timeout=_us(within_s),
                client_timeout=within_s + GRACE_S,
            )
        except (InferenceServerException, grpc.RpcError) as error:
            raise self._error(error) from error
        return self._outputs(result)

    async def stream(
        self, inputs: Arrays, *, timeout_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One request, and its responses as they come. Closing the generator cancels it there.

        ``timeout_s`` (the entry's own if None) is how long the next response may take; the server
        is told, and so gives up a request that waits longer for its turn.
        """
        within_s = self.spec.timeout_s if timeout_s is None else timeout_s
        responses = self._client.stream_infer(
            self._request(self._given(inputs), within_s), headers=_HEADERS
        )
        try:
            while True:
                async with asyncio.timeout(within_s + GRACE_S):
                    result, error = await anext(responses)
                if error is not None:
                    raise error
                # The last one may be empty: it only says that it is the last.
                if len(result.get_response().outputs):
                    yield self._outputs(result)
        except StopAsyncIteration:
            return
        except TimeoutError as late:
            raise ModelServerTimeout(f"{self._who} was silent for {within_s:g} s.") from late
        except (InferenceServerException, grpc.RpcError) as error:
            raise self._error(error) from error
        finally:
            responses.cancel()

    async def _request(
        self, given: list[InferInput], within_s: float
    ) -> AsyncIterator[dict[str, Any]]:
        """The only one of its stream, so the server ends that with its last response."""
        yield {
            "model_name": self.spec.model,
            "model_version": self.spec.version,
            "inputs": given,
            "request_id": str(next(self._ids)),
            "timeout": _us(within_s),
        }

    def _given(self, inputs: Arrays) -> list[InferInput]:
        given = []
        for name, tensor in self.spec.inputs.items():
            array = inputs[name]
            if tensor.dtype != "BYTES" and array.dtype != triton_to_np_dtype(tensor.dtype):
                raise InvalidInput(
                    f"{name} is {array.dtype}; the model takes {tensor}.", param=name
                )
            if not _fits(tensor.shape, array.shape):
                found = list(array.shape)
                raise InvalidInput(f"{name} is {found}; the model takes {tensor}.", param=name)
            each = InferInput(name, list(array.shape), tensor.dtype)
            each.set_data_from_numpy(array)
            given.append(each)
        return given

    def _outputs(self, result: Any) -> dict[str, Any]:
        arrays = {name: result.as_numpy(name) for name in self.spec.outputs}
        missing = [name for name, array in arrays.items() if array is None]
        if missing:
            raise ModelFailed(f"{self._who} answered without {', '.join(missing)}.")
        return arrays

    @property
    def _who(self) -> str:
        return f"The model server's '{self.spec.model}'"

    def _error(self, error: InferenceServerException | grpc.RpcError) -> ReelserveError:
        """What it means. A stream reports grpc's own errors, a call the client's."""
        if isinstance(error, grpc.aio.AioRpcError):
            status, said = error.code().name, error.details() or ""
        else:
            status, said = str(error.status() or "").removeprefix("StatusCode."), error.message()
        match status:
            case "UNAVAILABLE" if "timeout expired" in said:
                return ModelServerTimeout(f"{self._who} had no room for it in time.")
            case "UNAVAILABLE" if "maximum queue size" in said or "Too many requests" in said:
                return ModelServerBusy(f"{self._who} has too many requests.")
            case "RESOURCE_EXHAUSTED":
                return ModelServerBusy(f"{self._who} has too many requests: {said}")
            case "DEADLINE_EXCEEDED":
                return ModelServerTimeout(f"{self._who} did not answer in time.")
            case "UNAVAILABLE" | "CANCELLED":
                return ModelServerLost(f"{self._who} cannot be reached at {self._server.url}.")
            case "NOT_FOUND":
                return ConfigError(f"{self._who} is not served at {self._server.url}: {said}")
            case "INVALID_ARGUMENT":
                return InvalidInput(f"{self._who} does not take this: {said}")
        return ModelFailed(f"{self._who} failed: {said}")


def strings(texts: list[str], *shape: int) -> NDArray[np.object_]:
    """Texts as a ``BYTES`` tensor of this shape; of one dimension if none is given."""
    array = np.array([text.encode() for text in texts], np.object_)
    return array.reshape(shape or (len(texts),))


def _us(seconds: float) -> int:
    return max(1, round(seconds * 1e6))


def _fits(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(declared) == len(shape) and all(
        size in (-1, real) for size, real in zip(declared, shape, strict=True)
    )


def _told(tensor: Any) -> str:
    return f"{tensor.datatype} [{', '.join(map(str, tensor.shape))}]"


def _differences(kind: str, declared: Mapping[str, Tensor], told: Any) -> list[str]:
    """In words, for each tensor that the catalog names."""
    there = {each.name: each for each in told}
    found = []
    for name, tensor in declared.items():
        if name not in there:
            have = ", ".join(sorted(there)) or "none"
            found.append(f"it has no {kind} {name} (it has {have})")
        elif (tensor.dtype, tensor.shape) != (there[name].datatype, tuple(there[name].shape)):
            found.append(f"{kind} {name} is {_told(there[name])} there and {tensor} in the catalog")
    return found
