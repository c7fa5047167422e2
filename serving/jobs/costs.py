"""Cost models in Redis: every replica of a pool learns into them, every ingress reads them."""

from __future__ import annotations

import json
import logging
import time

from serving.jobs.cell import Cell
from serving.plan.catalog import Model
from serving.plan.costs import CELLS_MAX, CostModel, PoolCosts
from serving.plan.curve import WINDOW
from serving.plan.errors import ServiceUnavailable

log = logging.getLogger(__name__)

MODELS_MAX = 16
"""Cost models kept for one pool, by device class and catalog entry; the idlest makes room."""
FRESH_S = 3.0
"""A reader asks Redis at most this often for each pool; replicas write about as often."""


class CostStore:
    """What a replica does. Raises :class:`ServiceUnavailable` when Redis does not answer."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    async def sync(self, costs: CostModel) -> None:
        """Give what was observed since the last time, and know what all replicas know.

        When Redis is away only the sharing of these figures is lost: they count here.
        """
        observed = costs.fold()
        if observed is None:
            async with self._cell.answers():
                text = await self._cell.redis.hget(
                    self._cell.key("costs", costs.model.id), f"{costs.format} {costs.device}"
                )
        else:
            text = await self._cell.run(
                "learn",
                costs.model.id,
                costs.format,
                costs.device,
                json.dumps(observed),
                WINDOW,
                CELLS_MAX,
                MODELS_MAX,
            )
        if text is not None:
            try:
                costs.adopt(text)
            except ValueError as error:
                _complain(costs.model, costs.device, error)

    async def load(self, model: Model) -> PoolCosts:
        """What is known of a pool. Figures of another catalog entry or version are passed over."""
        key, redis = self._cell.key, self._cell.redis
        async with self._cell.answers():
            async with redis.pipeline(transaction=False) as pipe:
                pipe.hgetall(key("costs", model.id))
                pipe.zrange(key("replicas", model.id), 0, -1)
                kept, replicas = await pipe.execute()
            async with redis.pipeline(transaction=False) as pipe:
                for replica in replicas:
                    pipe.hget(key("replica", replica), "device")
                devices = await pipe.execute() if replicas else []
        prior, learned = CostModel(model), {}
        for field, text in kept.items():
            written_as, _, device = field.partition(" ")
            if written_as == prior.format:
                try:
                    learned[device] = CostModel.from_json(model, device, text)
                except ValueError as error:
                    _complain(model, device, error)
        return PoolCosts(prior, learned, frozenset(device for device in devices if device))


class CostReader:
    """What an ingress does: the same, a few seconds old at most, and never an error for it."""

    def __init__(self, store: CostStore) -> None:
        self._store = store
        self._known: dict[str, PoolCosts] = {}
        self._read_at: dict[str, float] = {}

    async def of(self, model: Model) -> PoolCosts:
        """What was known last, or the catalog's table, while Redis is away or being asked."""
        now = time.monotonic()
        if now - self._read_at.get(model.id, -FRESH_S) >= FRESH_S:
            self._read_at[model.id] = now  # first: one request asks, the others go on
            try:
                self._known[model.id] = await self._store.load(model)
            except ServiceUnavailable as error:
                log.warning("cost figures: %s", error)
        return self._known.get(model.id) or PoolCosts(CostModel(model), {}, frozenset())


def _complain(model: Model, device: str, error: ValueError) -> None:
    log.warning("%s: the cost figures of %s are of no use: %s", model.id, device, error)
