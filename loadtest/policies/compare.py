"""Every policy on the same arrivals, several times over, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from loadtest.policies.executor import Policy, Replica, simulate
from loadtest.policies.peers import Fifo, ServeBatch, Sglang, Triton, VllmOmni
from loadtest.policies.reelserve import Reelserve
from loadtest.policies.work import KINDS, Costs, Job, arrivals
from loadtest.summary import percentile
from serving.plan.rank import SLO_FACTOR

POLICIES: Mapping[str, Callable[[Costs], Policy]] = {
    "reelserve": Reelserve,
    "fifo": lambda costs: Fifo(),
    "serve_batch": lambda costs: ServeBatch(),
    "triton": lambda costs: Triton(),
    "sglang": lambda costs: Sglang(),
    "vllm_omni": lambda costs: VllmOmni(),
}

EDGE = 10
"""One in so many jobs at either end of a run counts as warming up or as draining."""

ATTAINMENT_MIN = 0.94
SMALL_P95_GAIN_MIN = 20.0
LONG_P95_COST_MAX = 1.7


def on_time(job: Job, costs: Costs) -> bool:
    """Whether it was done within 3 times its solo time."""
    return job.done_s - job.created_s <= SLO_FACTOR * costs.solo_s(job.kind, job.steps)


def figures(jobs: Sequence[Job], replica: Replica) -> dict[str, float]:
    """Of one run's jobs, those between warm-up and drain, from submission to clip.

    ``batching_gain`` is solo work done in a second of the device, by all of them.
    """
    costs = replica.costs
    edge = len(jobs) // EDGE
    counted = jobs[edge : len(jobs) - edge]
    took = {
        kind.name: [job.done_s - job.created_s for job in counted if job.kind is kind]
        for kind in KINDS
    }
    return {
        "slo_attainment": mean(on_time(job, costs) for job in counted),
        **{
            f"{kind.name}_attainment": mean(
                on_time(job, costs) for job in counted if job.kind is kind
            )
            for kind in KINDS
        },
        **{f"{name}_p95_s": percentile(seconds, 95) for name, seconds in took.items()},
        "mean_s": mean(job.done_s - job.created_s for job in counted),
        "batching_gain": sum(costs.solo_s(job.kind, job.steps) for job in jobs) / replica.busy_s,
    }


def compare(
    costs: Costs, load: float, jobs: int, seeds: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Figures by name and policy: the mean over the seeds, and the least and most of them."""
    runs: dict[str, list[dict[str, float]]] = {}
    for name, make in POLICIES.items():
        progress(f"{name}: {seeds} runs of {jobs} jobs")
        runs[name] = [
            figures(*simulated(make(costs), costs, load, jobs, seed)) for seed in range(seeds)
        ]
    names = list(runs["fifo"][0])
    by_figure: dict[str, Any] = {
        figure: {
            policy: round(mean(run[figure] for run in found), 4) for policy, found in runs.items()
        }
        for figure in names
    }
    by_figure["spread"] = {
        figure: {
            policy: [
                round(min(run[figure] for run in found), 4),
                round(max(run[figure] for run in found), 4),
            ]
            for policy, found in runs.items()
        }
        for figure in names
    }
    return {**by_figure, **_against(by_figure)}


def simulated(
    policy: Policy, costs: Costs, load: float, jobs: int, seed: int
) -> tuple[list[Job], Replica]:
    """One run: its jobs, all of them done, and the replica that did them."""
    stream, replica = arrivals(costs, load, jobs, seed), Replica(costs)
    simulate(policy, replica, stream)
    return stream, replica


def _against(by_figure: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Every policy over the two baselines, and Reelserve against its targets."""
    shown = ("slo_attainment", "small_p95_s", "long_p95_s", "batching_gain")
    ratio = {
        f"to_{baseline}": {
            figure: {
                policy: round(value / by_figure[figure][baseline], 3)
                for policy, value in by_figure[figure].items()
            }
            for figure in shown
            if by_figure[figure][baseline]
        }
        for baseline in ("fifo", "serve_batch")
    }
    attainment, small, long = (by_figure[figure] for figure in shown[:3])
    best_peer = max(value for policy, value in attainment.items() if policy != "reelserve")
    gain = small["serve_batch"] / small["reelserve"]
    cost = long["reelserve"] / long["fifo"]
    met = {
        "slo_attainment": attainment["reelserve"] >= max(ATTAINMENT_MIN, best_peer),
        "small_p95_vs_serve_batch": gain >= SMALL_P95_GAIN_MIN,
        "long_p95_vs_fifo": cost <= LONG_P95_COST_MAX,
    }
    target = {
        "slo_attainment": ATTAINMENT_MIN,
        "small_p95_vs_serve_batch": SMALL_P95_GAIN_MIN,
        "long_p95_vs_fifo": LONG_P95_COST_MAX,
        "met": met,
    }
    return {
        "small_p95_vs_serve_batch": round(gain, 2),
        "long_p95_vs_fifo": round(cost, 3),
        "ratio": ratio,
        "target": target,
    }
