"""The job, its states, and the one durable queue in Redis.

Every change of a job is one Lua script, timed by Redis and guarded by the job's fence.
Knows nothing of HTTP, Ray, torch or files: a result is a plain mapping somebody else fills.
"""

from serving.jobs.cell import CELL, Cell
from serving.jobs.job import ACTIVE, TERMINAL, Job, Phase, State, new_video_id
from serving.jobs.leases import Drop, Leases, Signals
from serving.jobs.queue import JobPage, JobQueue, Place, PoolState, ReplicaState
from serving.jobs.settings import JobSettings
from serving.jobs.upkeep import Upkeep

__all__ = [
    "ACTIVE",
    "CELL",
    "TERMINAL",
    "Cell",
    "Drop",
    "Job",
    "JobPage",
    "JobQueue",
    "JobSettings",
    "Leases",
    "Phase",
    "Place",
    "PoolState",
    "ReplicaState",
    "Signals",
    "State",
    "Upkeep",
    "new_video_id",
]
