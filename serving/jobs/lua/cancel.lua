-- cancel(id, user, error) -> the job's hash after it, or {} if this user has no such job
-- A queued or running job becomes cancelled at once: that makes the fence of the run stale, and
-- the replica is told to stop at its next step. A job that has ended stays as it is.
local id, user, error = ARGV[1], ARGV[2], ARGV[3]
-- Of one that is streamed nobody but its listener has a say, by leaving.
local got = redis.call('HMGET', key('job', id), 'user', 'pool', 'state', 'inline')
if got[1] ~= user or got[4] then
  return {}
end
if got[3] == 'queued' or got[3] == 'in_progress' then
  finish(id, got[2], 'cancelled', 'error', error)
  drop_run(id, got[2])
end
return redis.call('HGETALL', key('job', id))
