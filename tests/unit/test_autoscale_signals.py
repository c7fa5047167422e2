"""One description of a signal serves a query of Prometheus and a text that was scraped."""

from __future__ import annotations

import pytest

from autoscale.signals import (
    ANSWERED,
    AT,
    BUSY,
    OPTIONAL,
    QUEUED_S,
    READ_AT,
    REQUIRED,
    SERVERS,
    WAITING,
    Reading,
    from_text,
    samples,
    servers_of,
    together,
)
from autoscale.values import Pool, Sample, Scaling, Server

POOL = Pool("wan", Scaling(), {"burst": 30, "standard": 180})
UPSCALER = Server("upscale", request_s=2.5)
UPSCALING = Pool("triton/upscale", Scaling(), {"standard": 10}, server=UPSCALER)
SPEAKER = Server("speech", request_s=0.5, leased=True)
SPEAKING = Pool("espeak", Scaling(), {"burst": 1, "standard": 1}, server=SPEAKER)


def exposition(model: str = "wan", without: str = "", at_s: float = 7) -> str:
    """What an ingress would say of one model, but for the metric ``without``."""
    lines = []
    for signal in (*REQUIRED, *OPTIONAL):
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


def of_triton(model: str, waiting: int, answered: int = 0) -> str:
    """What one server says of a model."""
    return (
        f'nv_inference_pending_request_count{{model="{model}",version="1"}} {waiting}\n'
        "# TYPE nv_inference_request_success counter\n"
        f'nv_inference_request_success{{model="{model}",version="1"}} {answered}\n'
    )


def seen_of(pool: Pool, *texts: tuple[str, float]) -> Sample | None:
    return samples(together([from_text(*each) for each in texts]), [pool], {})[pool.name]


def test_queues_of_servers_add_up() -> None:
    assert WAITING.promql({}) == "sum by (model) (nv_inference_pending_request_count)"
    assert SERVERS.promql({"cell": "a"}) == (
        'count by (model) (nv_inference_pending_request_count{cell="a"})'
    )
    assert READ_AT.promql({}) == "max by (model) (timestamp(nv_inference_pending_request_count))"
    assert ANSWERED.promql({}) == "sum by (model) (nv_inference_request_success)"


def test_what_waits_in_servers_is_counted_at_the_catalogs_cost() -> None:
    texts = [(of_triton("upscale", 3, answered=10), 7.0), (of_triton("upscale", 1), 8.0)]
    seen = seen_of(UPSCALING, *texts)
    assert seen is not None
    assert (seen.at_s, seen.busy) == (8, 2)
    waits = seen.classes["standard"]
    assert (waits.queued_jobs, waits.queued_s) == (4, 10.0)
    assert (waits.in_flight_jobs, waits.in_flight_s) == (2, 5.0), "one in each, while others wait"
    assert (waits.arrived_jobs, waits.arrived_s) == (14, 35.0)
    assert servers_of(UPSCALER, together([from_text(*each) for each in texts]), {}) == 2


def test_a_server_where_nothing_waits_may_be_idle() -> None:
    seen = seen_of(UPSCALING, (of_triton("upscale", 0, answered=4), 7.0))
    assert seen is not None
    arrived_s = seen.classes["standard"].arrived_s
    assert (seen.jobs, seen.work_s, seen.busy, arrived_s) == (0, 0, 0, 10)


def test_a_server_that_says_nothing_of_the_model_was_not_seen() -> None:
    assert seen_of(UPSCALING, (of_triton("another", 3), 7.0)) is None
    assert servers_of(UPSCALER, from_text(of_triton("another", 3)), {}) == 0
    assert seen_of(SPEAKING, (exposition("espeak"), 7.0)) is None
    assert seen_of(SPEAKING, (of_triton("speech", 3), 7.0)) is None, "nor without the ingress"


@pytest.mark.parametrize(("waiting", "beside"), [(0, 0), (8, 0), (11, 3)])
def test_what_waits_there_under_a_lease_of_ours_is_counted_once(waiting: int, beside: int) -> None:
    leased = seen_of(POOL, (exposition(), 0.0))
    assert leased is not None
    in_flight = sum(each.in_flight_jobs for each in leased.classes.values())
    assert in_flight == 8
    seen = seen_of(SPEAKING, (exposition("espeak"), 0.0), (of_triton("speech", waiting), 5.0))
    assert seen is not None
    assert seen.at_s == 5, "what stands still longest counts"
    assert seen.jobs == leased.jobs + beside
    assert seen.work_s == leased.work_s + beside * 0.5
