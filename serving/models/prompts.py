"""Prompt embeddings, cached by content.

The negative prompt is nearly always the same, and people try one prompt with several seeds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch


class PromptCache:
    """The embeddings used last, of at most ``bytes_max`` bytes together; 0 keeps none.

    They lie in the CPU's memory: beside a text encoder's work a copy to the device is nothing, and
    the device's memory is for latents. Used by one thread; any may read the numbers.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(
        self,
        content: tuple[str | int, ...],
        device: torch.device,
        encode: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """What ``encode()`` gives, bit for bit, on ``device``. The caller may write to it.

        ``content`` is all that decides those bits, such as text and token length. Only its hash
        is kept, so that a long prompt costs no more than a short one.
        """
        key = hashlib.sha256(repr(content).encode()).hexdigest()
        if (kept := self._kept.get(key)) is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return kept.to(device, copy=True)
        made = encode()
        self.misses += 1
        if made.nbytes <= self._bytes_max:
            # A copy also lets go of whatever larger tensor this is a view of.
            self._kept[key] = made.detach().to("cpu", copy=True)
            self.bytes += made.nbytes
        while self.bytes > self._bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.nbytes
        return made.to(device)

    def clear(self) -> None:
        """Keep nothing. The counts stay."""
        self._kept.clear()
        self.bytes = 0
