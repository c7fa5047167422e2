"""The job, its states, and the one durable queue in Redis.

Every change of a job is one Lua script, timed by Redis and guarded by the job's fence.
Knows nothing of HTTP, Ray, torch or files: a result is a plain mapping somebody else fills.
"""

from serving.jobs.admission import Admission, Allowance, Limits, Usage, Wish
from serving.jobs.cell import CELL, Cell
from serving.jobs.costs import CostReader, CostStore
from serving.jobs.decisions import HISTORY_MAX as DECISIONS_MAX
from serving.jobs.decisions import Decided, Decisions, Line
from serving.jobs.holds import compare_holds
from serving.jobs.inline import InlineLease, InlineLeases
from serving.jobs.job import ACTIVE, TERMINAL, Job, Kind, Phase, State, kind_of, new_id
from serving.jobs.leases import Drop, Lease, Leases, Signals, Wake
from serving.jobs.pool import (
    BUCKETS_S,
    Backlog,
    Histogram,
    PoolState,
    ReplicaState,
    ReplicaStatus,
    Starts,
)
from serving.jobs.queue import JobPage, JobQueue, Place
from serving.jobs.room import IDLE, Resident, Room, Rows
from serving.jobs.settings import JobSettings
from serving.jobs.upkeep import Upkeep
from serving.jobs.views import Before, ClassTop, Explanation, PoolTop, TenantTop

__all__ = [
    "ACTIVE",
    "BUCKETS_S",
    "CELL",
    "DECISIONS_MAX",
    "IDLE",
    "TERMINAL",
    "Admission",
    "Allowance",
    "Backlog",
    "Before",
    "Cell",
    "ClassTop",
    "CostReader",
    "CostStore",
    "Decided",
    "Decisions",
    "Drop",
    "Explanation",
    "Histogram",
    "InlineLease",
    "InlineLeases",
    "Job",
    "JobPage",
    "JobQueue",
    "JobSettings",
    "Kind",
    "Lease",
    "Leases",
    "Limits",
    "Line",
    "Phase",
    "Place",
    "PoolState",
    "PoolTop",
    "ReplicaState",
    "ReplicaStatus",
    "Resident",
    "Room",
    "Rows",
    "Signals",
    "Starts",
    "State",
    "TenantTop",
    "Upkeep",
    "Usage",
    "Wake",
    "Wish",
    "compare_holds",
    "kind_of",
    "new_id",
]
