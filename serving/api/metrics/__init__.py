"""What ``/metrics`` says: state in Redis, as metric families. docs/metrics.md lists them all.

A collector is made of values that were read at one moment, so any ingress replica answers the same,
and a restart of one loses no count.
"""

from serving.api.metrics.autoscale import AutoscaleCollector
from serving.api.metrics.costs import CostCollector
from serving.api.metrics.credits import CreditCollector
from serving.api.metrics.fleet import FleetCollector
from serving.api.metrics.jobs import JobCollector

__all__ = [
    "AutoscaleCollector",
    "CostCollector",
    "CreditCollector",
    "FleetCollector",
    "JobCollector",
]
