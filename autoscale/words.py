"""A decision in a sentence, for an operator."""

from __future__ import annotations

from autoscale.values import Decision, Pool


def why(pool: Pool, decision: Decision) -> str:
    """What the target came from, with the figures that matter."""
    scaling, demand = pool.scaling, decision.demand
    wanted = f"{_work(decision)}, which wants {decision.wanted}"
    match decision.bound:
        case "hold":
            age_s = decision.sample_age_s
            since = "there never was one" if age_s is None else f"the last came {age_s:.0f} s ago"
            return f"no fresh sample ({since}): {decision.target} is kept"
        case "need":
            extra = f" and a buffer of {scaling.buffer}" if scaling.buffer else ""
            return f"{_work(decision)}{extra}"
        case "min_replicas":
            return f"{_work(decision)}; min_replicas is {scaling.min_replicas}"
        case "max_replicas":
            asked = demand.need + scaling.buffer
            return f"{_work(decision)}, which wants {asked}; max_replicas is {scaling.max_replicas}"
        case "scaling_delay":
            return f"{wanted}; not yet for scaling_delay_s, {scaling.scaling_delay_s:g} s"
        case "keep_alive":
            return f"{wanted}; more was needed within keep_alive_s, {scaling.keep_alive_s:g} s"
        case "busy":
            return f"{wanted}; {decision.target} are busy"
        case "spike":
            return f"{wanted}; nothing is given back amid a spike"
        case "slew":
            return f"{wanted}; not so many at once"
        case "budget":
            return f"{wanted}; the budget of all pools gives {decision.target}"
        case "backoff":
            failures = decision.sample.start_failures if decision.sample else 0
            retry_s = decision.retry_in_s or 0.0
            again = f"the next is tried in {retry_s:.0f} s" if retry_s > 0 else "one is tried now"
            return f"{wanted}; the last {failures} to start failed, {again}"


def _work(decision: Decision) -> str:
    demand = decision.demand
    work = f"{demand.work_s:.1f} GPU-seconds in {demand.jobs} jobs"
    match demand.by:
        case "idle":
            return "nothing to do"
        case "drain":
            late = f" of class {demand.critical}" if demand.critical else ""
            text = f"{work}, to begin in time{late}"
        case "horizon":
            text = f"{work} and {demand.forecast:.2f} more each second until a replica is there"
        case "sustain":
            text = f"{demand.slow:.2f} GPU-seconds come each second"
        case "jobs":
            text = f"{work}, no more replicas than these"
    cold = f", cold start {demand.cold_start_s:.0f} s"
    return text + cold + (" (longer than the objective allows)" if demand.clamped else "")
