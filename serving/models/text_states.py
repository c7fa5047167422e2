"""The keys and values of prompts in a Wan transformer's cross-attention, computed once per prompt.

The library projects every prompt and computes its keys and values again in every step, although
they never change; where a clip has few tokens that is most of the step. Here each prompt's are
computed at batch 1, so that they depend on nothing but the prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

BYTES_MAX = 2_000_000_000
"""A row with 512 tokens takes 94 MB in Wan 2.1 1.3B, 189 MB in TI2V 5B and 419 MB in 14B."""


class TextStates:
    """What a transformer reads instead of its prompts: a buffer for the forwards of each shape.

    A prompt keeps its row for as long as forwards of that shape carry it, so a step that nobody
    joins copies nothing. ``bytes_max`` bounds all buffers together: the one used longest ago goes
    first, and a shape whose buffer alone is larger does without, whatever else runs.
    """

    def __init__(self, transformer: WanTransformer3DModel, bytes_max: int = BYTES_MAX) -> None:
        self._transformer: Any = transformer
        self._bytes_max = bytes_max
        self._buffers: OrderedDict[Hashable, _Buffer] = OrderedDict()
        self._attention: list[_TextAttention] = []
        for block in transformer.blocks:
            self._attention.append(_TextAttention(block.attn2.processor))
            block.attn2.set_processor(self._attention[-1])

    @staticmethod
    def fit(transformer: WanTransformer3DModel) -> bool:
        """Image tokens beside the prompt's are another kind of attention, which stays as it is."""
        return transformer.config.added_kv_proj_dim is None

    @property
    def bytes(self) -> int:
        return sum(buffer.bytes for buffer in self._buffers.values())

    def clear(self) -> None:
        """Give the memory back; what is needed is computed again."""
        self._buffers.clear()

    @contextmanager
    def read(
        self, shape: Hashable, prompts: Sequence[torch.Tensor], rows: int
    ) -> Iterator[list[int] | None]:
        """Within, a forward of ``rows`` rows reads these prompts, each [1, tokens, channels].

        Gives the row of each prompt; None if the forward must be given the prompts as ever.
        The other rows read whatever is there; nobody may use what they predict.
        """
        buffer = self._buffer(shape, prompts[0], rows)
        if buffer is None:
            yield None
            return
        places = buffer.place(prompts, rows)
        try:
            for layer, attention in enumerate(self._attention):
                attention.text = buffer.keys[layer, :rows], buffer.values[layer, :rows]
            yield places
        finally:
            for attention in self._attention:
                attention.text = None

    def _buffer(self, shape: Hashable, prompt: torch.Tensor, rows: int) -> _Buffer | None:
        buffer = self._buffers.pop(shape, None)
        if buffer is None or buffer.rows < rows:
            size_bytes = rows * _row_bytes(self._transformer, prompt)
            if size_bytes > self._bytes_max:
                return None
            while self.bytes + size_bytes > self._bytes_max:
                self._buffers.popitem(last=False)
            buffer = _Buffer(self._transformer, prompt, rows)
        self._buffers[shape] = buffer
        return buffer


class _Buffer:
    """``keys`` and ``values`` [layers, rows, prompt tokens, heads, channels]; a prompt per row."""

    def __init__(self, transformer: Any, prompt: torch.Tensor, rows: int) -> None:
        attn = transformer.blocks[0].attn2
        channels = attn.kv_inner_dim // attn.heads
        shape = (len(transformer.blocks), rows, prompt.shape[1], attn.heads, channels)
        self.keys, self.values = prompt.new_zeros(shape), prompt.new_zeros(shape)
        self.rows = rows
        self.bytes = rows * _row_bytes(transformer, prompt)
        self._transformer = transformer
        self._prompts: list[torch.Tensor | None] = [None] * rows

    def place(self, prompts: Sequence[torch.Tensor], rows: int) -> list[int]:
        """The row below ``rows`` of each prompt. Who is there stays; others take what is free."""
        free = dict.fromkeys(range(rows))
        places: list[int | None] = []
        for prompt in prompts:
            row = next((row for row in free if self._prompts[row] is prompt), None)
            if row is not None:
                del free[row]
            places.append(row)
        vacant = iter(free)
        return [
            self._write(next(vacant), prompt) if row is None else row
            for row, prompt in zip(places, prompts, strict=True)
        ]

    def _write(self, row: int, prompt: torch.Tensor) -> int:
        self._prompts[row] = None  # if this fails, the row holds nobody's
        twin = self._row_of(prompt)
        if twin is not None:  # most often the negative prompt, which many share
            self.keys[:, row], self.values[:, row] = self.keys[:, twin], self.values[:, twin]
        else:
            self._project(row, prompt)
        self._prompts[row] = prompt
        return row

    def _row_of(self, prompt: torch.Tensor) -> int | None:
        rows = (
            row
            for row, kept in enumerate(self._prompts)
            if kept is not None and torch.equal(kept, prompt)
        )
        return next(rows, None)

    def _project(self, row: int, prompt: torch.Tensor) -> None:
        text = self._transformer.condition_embedder.text_embedder(prompt)
        for layer, block in enumerate(self._transformer.blocks):
            attn = block.attn2
            self.keys[layer, row] = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1))[0]
            self.values[layer, row] = attn.to_v(text).unflatten(2, (attn.heads, -1))[0]


def _row_bytes(transformer: Any, prompt: torch.Tensor) -> int:
    channels: int = transformer.blocks[0].attn2.kv_inner_dim
    return 2 * len(transformer.blocks) * prompt.shape[1] * channels * prompt.element_size()


class _TextAttention(WanAttnProcessor):  # type: ignore[misc]
    """Cross-attention whose keys and values are there already, while ``text`` is set."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self._attention_backend = library._attention_backend
        self._parallel_config = library._parallel_config
        self.text: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.text is None:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        mixed = dispatch_attention_fn(query, *self.text, backend=self._attention_backend)
        return attn.to_out[0](mixed.flatten(2, 3).type_as(query))
