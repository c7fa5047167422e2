-- lease(pool, replica, lease_ms, token, attempts_max, lost_error) -> the job's hash, or {} if none
-- waits. Reaps first, so that a lost job goes before those submitted after it. The token is new
-- for each call: the same one again is a call whose answer was lost, and gets the same job.
local pool, replica, lease_ms, token = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local last = redis.call('GET', key('last_lease', replica)) or ''
local last_token, last_id, last_fence = string.match(last, '^(%S+) (%S+) (%d+)$')
if last_token == token then
  return fence_holds(last_id, last_fence) and redis.call('HGETALL', key('job', last_id)) or {}
end
reap(pool, tonumber(ARGV[5]), ARGV[6])

local head = redis.call('ZPOPMIN', key('queued', pool))
if not head[1] then
  return {}
end
local id, now, fence = head[1], now_ms(), redis.call('INCR', key('fence'))
redis.call('HSET', key('job', id), 'state', 'in_progress', 'replica', replica,
  'fence', fence, 'lease_ms', lease_ms, 'phase', 'encode',
  'remaining_ms', job_field(id, 'est_device_ms'),
  'step', job_field(id, 'checkpoint_step') or 0)
redis.call('HINCRBY', key('job', id), 'attempts', 1)
redis.call('HSETNX', key('job', id), 'started_ms', now)
lease_until(id, pool, now + lease_ms)
redis.call('SET', key('last_lease', replica), token .. ' ' .. id .. ' ' .. fence, 'EX', 3600)
return redis.call('HGETALL', key('job', id))
