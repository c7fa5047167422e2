"""Frames at twice their size by a model of a Triton server, of the kind that
``deployments/triton/upscale`` is."""

from __future__ import annotations

from serving.models.family import Frames
from serving.models.triton import TritonModel, TritonServer
from serving.plan.catalog import Upscaler
from serving.plan.clip import UPSCALE
from serving.plan.errors import ConfigError, ModelFailed
from serving.plan.triton import Tensor, TritonModelSpec

FRAMES = Tensor(dtype="UINT8", shape=(-1, -1, -1, 3))
SEAT = TritonModelSpec(model="upscale", inputs={"FRAMES": FRAMES}, outputs={"UPSCALED": FRAMES})
"""What such a model takes and gives. ``model`` and ``timeout_s`` may be others."""


class TritonUpscaler:
    """What a catalog entry's ``upscaler`` says, and a
    :class:`~serving.plan.served.ModelServer`. Made within the event loop that uses it."""

    def __init__(self, seat: Upscaler) -> None:
        if seat.url is None:
            raise ConfigError(f"the upscaler '{seat.model}' has no server")
        self.seat = seat
        self._server = TritonServer(seat.url)
        spec = SEAT.model_copy(update={"model": seat.model, "timeout_s": seat.timeout_s})
        self._model: TritonModel = self._server.model(spec)
        self._checked = False

    @property
    def id(self) -> str:
        return self.seat.pool_id

    async def check(self) -> None:
        """:class:`ConfigError` unless the server's model is of this kind."""
        await self._model.check()
        self._checked = True

    async def ready(self) -> bool:
        if not self._checked:
            try:
                await self.check()
            except ConfigError as error:
                raise ConfigError(
                    f"{error.message.rstrip('.')}. Serve one there, or leave the `upscaler` out of "
                    "the catalog's entries: then `upscale: 2` is not offered."
                ) from error
        return await self._model.ready()

    async def upscaled(self, frames: Frames) -> Frames:
        """uint8 [n, height, width, 3], RGB, at twice its height and width; ``seat.frames`` at most.
        Cancelling the task cancels it there.

        Raises :class:`ServiceUnavailable` of some kind, after which the same call may succeed, and
        :class:`GenerationError` for what the model does not take or fails at, or for a model that
        is no upscaler.
        """
        try:
            if not self._checked:  # the server may come later than we do
                await self.check()
            answer = await self._model.infer({"FRAMES": frames})
        except ConfigError as error:
            raise ModelFailed(f"The clip cannot be upscaled: {error.message}") from error
        upscaled: Frames = answer["UPSCALED"]
        count, height, width, channels = frames.shape
        if upscaled.shape != (count, UPSCALE * height, UPSCALE * width, channels):
            made, given = list(upscaled.shape), list(frames.shape)
            raise ModelFailed(f"The upscaler made {made} of {given}, which is not twice the size.")
        return upscaled

    async def close(self) -> None:
        await self._server.close()
