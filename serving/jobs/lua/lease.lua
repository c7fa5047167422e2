-- lease(pool, replica, lease_ms, attempts_max, lost_error) -> the job's hash, or {} if none waits
-- First takes back what other replicas lost: a job whose lease ran out returns to its place in
-- the queue, or ends as failed with lost_error once it was tried attempts_max times.
local pool, replica, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local attempts_max, lost_error = tonumber(ARGV[4]), ARGV[5]
local now = now_ms()

local lapsed = redis.call('ZRANGEBYSCORE', key('leased', pool), '-inf', now, 'LIMIT', 0, 100)
for _, id in ipairs(lapsed) do
  drop_run(id, pool)
  if tonumber(job_field(id, 'attempts')) >= attempts_max then
    finish(id, pool, 'failed', 'error', lost_error)
  else
    requeue(id, pool)
  end
end

local head = redis.call('ZPOPMIN', key('queued', pool))
if not head[1] then
  return {}
end
local id = head[1]
redis.call('HSET', key('job', id), 'state', 'in_progress', 'replica', replica,
  'fence', redis.call('INCR', key('fence')), 'lease_until_ms', now + lease_ms,
  'phase', 'encode', 'step', 0)
redis.call('HINCRBY', key('job', id), 'attempts', 1)
redis.call('HSETNX', key('job', id), 'started_ms', now)
redis.call('ZADD', key('leased', pool), now + lease_ms, id)
return redis.call('HGETALL', key('job', id))
