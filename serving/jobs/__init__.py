"""The job, its states, and the one durable queue in Redis.

Every change of a job is one Lua script, timed by Redis and guarded by the job's fence.
Knows nothing of HTTP, Ray, torch or files: a result is a plain mapping somebody else fills.
"""
