"""A Triton model that speaks, whatever engine makes it heard. For Triton's Python backend.

Whoever is being served takes turns, a sentence each: the first sentence of every request is heard
before the second of any, also of one that came meanwhile. What was cancelled is left at its turn.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.plan.errors import ReelserveError
from serving.plan.speech import SpeechEngine

TURNS_MAX = 256
"""Requests in turn at once. Beyond it is overload, and said at once."""


class SpeechTurns:
    """A decoupled model with the tensors of ``deployments/triton/speech``."""

    def __init__(self, engine: SpeechEngine) -> None:
        self._engine = engine
        self._turns: deque[_Turn] = deque()
        self._changed = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._speak, name="speak")
        self._thread.start()

    def take(self, requests: list[Any]) -> None:
        """Take them on; their responses come from the thread."""
        turns = [_Turn(request) for request in requests]
        with self._changed:
            room = max(0, TURNS_MAX - len(self._turns))
            self._turns.extend(turns[:room])
            self._changed.notify()
        for turn in turns[room:]:
            turn.refuse(
                pb_utils.TritonError("Too many requests at once.", pb_utils.TritonError.UNAVAILABLE)
            )

    def close(self) -> None:
        """Say what was taken on, and end."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    def _speak(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._turns or self._ends)
                if not self._turns:
                    return
                turn = self._turns.popleft()
            if turn.say(self._engine):
                with self._changed:
                    self._turns.append(turn)


class _Turn:
    """One request, and those of its sentences that are still to be said."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._left = deque(_strings(request, "SENTENCES"))
        self._voice = _strings(request, "VOICE")[0]
        speed = pb_utils.get_input_tensor_by_name(request, "SPEED").as_numpy()
        self._speed = float(speed.reshape(-1)[0])

    def say(self, engine: SpeechEngine) -> bool:
        """Say the next sentence; False once nothing more is to come."""
        if not self._left or self._sender.is_cancelled():
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return False
        try:
            pcm = engine.say(self._left.popleft(), self._voice, self._speed)
        except Exception as error:
            # Whatever one text does to the engine, the thread goes on for the others.
            self.refuse(_error(error))
            return False
        samples = np.frombuffer(pcm, "<i2").reshape(1, -1)
        rate = np.array([[engine.sample_rate_hz]], np.int32)
        tensors = [pb_utils.Tensor("AUDIO", samples), pb_utils.Tensor("SAMPLE_RATE", rate)]
        last = 0 if self._left else pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors), flags=last)
        return bool(self._left)

    def refuse(self, error: Any) -> None:
        self._sender.send(
            pb_utils.InferenceResponse(error=error),
            flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )


def _strings(request: Any, name: str) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return [each.decode() for each in tensor.reshape(-1)]


def _error(error: Exception) -> Any:
    theirs = isinstance(error, ReelserveError) and error.status < 500
    code = pb_utils.TritonError.INVALID_ARG if theirs else pb_utils.TritonError.INTERNAL
    return pb_utils.TritonError(str(error), code)
