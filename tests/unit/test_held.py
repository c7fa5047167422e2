"""Checkpoints that a replica keeps in memory."""

from __future__ import annotations

import torch

from deployments.checkpoints import Held
from serving.engine import Snapshot
from tests.jobs import spec


def snapshot(kilobytes: int) -> Snapshot:
    return Snapshot(spec(), 1, "print", {"latents": torch.zeros(kilobytes, 256)}, {})


def test_one_is_there_once_and_under_its_own_key() -> None:
    held, kept = Held(), snapshot(1)
    held.put("a", kept)
    assert held.take("b") is None
    assert held.take("a") is kept
    assert held.take("a") is None


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    held = Held(bytes_max=4 * 1024)
    for key in "abcde":
        held.put(key, snapshot(1))
    assert [key for key in "abcde" if held.take(key)] == ["b", "c", "d", "e"]
    held.put("large", snapshot(5))
    assert held.take("large") is None
    held.put("small", snapshot(1))
    assert held.take("small")
