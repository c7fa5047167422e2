"""One description of a signal serves a query of Prometheus and a text that was scraped."""

from __future__ import annotations

import pytest

from autoscale.signals import (
    AT,
    BUSY,
    QUEUED_S,
    REQUIRED,
    SIGNALS,
    Reading,
    from_text,
    samples,
)
from autoscale.values import Pool, Scaling

POOL = Pool("wan", Scaling(), {"burst": 30, "standard": 180})


def exposition(model: str = "wan", without: str = "", at_s: float = 7) -> str:
    """What an ingress would say of one model, but for the metric ``without``."""
    lines = []
    for signal in SIGNALS:
        if signal.metric == without:
            continue
        labels = {"model": model} if "model" in signal.by else {}
        labels.update(signal.where)
        for name in ("burst", "standard") if "class" in signal.by else ("",):
            more = {"class": name} if name else {}
            text = ",".join(f'{key}="{value}"' for key, value in {**labels, **more}.items())
            value = at_s if signal is AT else 3 if name == "burst" else 5
            lines.append(
                f"{signal.metric}{{{text}}} {value}" if text else f"{signal.metric} {value}"
            )
    return "\n".join(sorted(set(lines))) + "\n"


def read(text: str, pool: Pool = POOL) -> object:
    return samples(from_text(text), [pool], {})[pool.name]


def test_a_signal_is_a_selector_grouped_by_its_labels() -> None:
    assert QUEUED_S.promql({}) == (
        'max by (model, class) (reelserve_backlog_gpu_seconds{state="queued"})'
    )
    assert BUSY.promql({"cell": "a"}) == (
        'max by (model) (reelserve_replicas{state="busy", cell="a"})'
    )
    assert AT.promql({}) == "max (reelserve_state_time_seconds)"


def test_what_was_scraped_becomes_a_sample() -> None:
    seen = samples(from_text(exposition()), [POOL], {})["wan"]
    assert seen is not None
    assert seen.at_s == 7
    assert seen.classes["burst"].queued_s == 3
    assert seen.classes["standard"].arrived_s == 5
    assert (seen.busy, seen.start_failures, seen.cold_start_s) == (5, 5, 5)


@pytest.mark.parametrize("metric", sorted({signal.metric for signal in REQUIRED}))
def test_a_pool_of_which_anything_is_missing_was_not_seen(metric: str) -> None:
    assert read(exposition()) is not None
    assert read(exposition(without=metric)) is None


def test_what_has_not_happened_yet_may_be_missing() -> None:
    text = exposition(without="reelserve_replica_cold_start_seconds")
    seen = samples(from_text(text), [POOL], {})["wan"]
    assert seen is not None
    assert seen.cold_start_s is None


def test_a_pool_that_nobody_speaks_of_was_not_seen_and_the_other_was() -> None:
    other = Pool("ltx", Scaling(), {"burst": 30})
    seen = samples(from_text(exposition()), [POOL, other], {})
    assert seen["wan"] is not None
    assert seen["ltx"] is None


def test_of_two_copies_the_highest_counts() -> None:
    found: Reading = BUSY.of(
        [
            ({"model": "wan", "state": "busy", "instance": "a"}, 1),
            ({"model": "wan", "state": "busy", "instance": "b"}, 2),
            ({"model": "wan", "state": "idle", "instance": "a"}, 9),
        ]
    )
    assert found == {("wan",): 2}
