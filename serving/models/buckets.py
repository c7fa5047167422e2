"""How many rows the forwards of each shape have on this device."""

from __future__ import annotations

import logging

from serving.plan.catalog import BatchPolicy

log = logging.getLogger(__name__)


class Buckets:
    """The catalog's policy, until the device has no memory for it.

    Shapes are told apart by their latent tokens.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._limits: dict[int, int] = {}

    def rows_max(self, tokens: int) -> int:
        """Rows a forward of this shape carries at most."""
        rows = self._policy.rows_max(tokens)
        return min(rows, self._limits.get(tokens, rows))

    def rows(self, tokens: int, carried: int) -> int:
        """Rows a forward of this shape has when it carries so many."""
        return max(carried, min(self.rows_max(tokens), self._policy.bucket(tokens, carried)))

    def shrink(self, tokens: int, carried: int) -> bool:
        """A forward that carried so many rows found no memory: halve them until the next start.

        False if they are down to two already, which a run with guidance needs.
        """
        fewer = self.rows(tokens, carried) // 2
        if fewer < 2:
            return False
        self._limits = {**self._limits, tokens: fewer}  # another thread may be reading
        log.warning(
            "out of memory: forwards of %d tokens have at most %d rows until the next start, and "
            "other bits than before; lower this model's batch rows in the catalog",
            tokens,
            fewer,
        )
        return True

    @property
    def name(self) -> str:
        """What sets the bits of these forwards apart from the policy's; empty if nothing does."""
        return "".join(f"-{tokens}x{rows}" for tokens, rows in sorted(self._limits.items()))
