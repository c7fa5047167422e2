-- lease(pool, replica, lease_ms, token, attempts_max, lost_error, busy) -> the job's hash, or {} if
-- none waits. Reaps first, so that a lost job goes before those submitted after it. The token is
-- new for each call: the same one again is a call whose answer was lost, and gets the same job.
-- A replica that is busy (1) leaves a fresh job to one that is idle, for HOLD_MS.
local HOLD_MS = 500
local pool, replica, lease_ms, token = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local last = redis.call('GET', key('last_lease', replica)) or ''
local last_token, last_id, last_fence = string.match(last, '^(%S+) (%S+) (%d+)$')
if last_token == token then
  return fence_holds(last_id, last_fence) and redis.call('HGETALL', key('job', last_id)) or {}
end
reap(pool, tonumber(ARGV[5]), ARGV[6])

local function somebody_is_idle()
  for _, other in ipairs(redis.call('ZRANGE', key('replicas', pool), 0, -1)) do
    local slots = redis.call('HMGET', key('replica', other), 'slots', 'free')
    if other ~= replica and slots[1] and slots[1] == slots[2] then
      return true
    end
  end
  return false
end

local head = redis.call('ZRANGE', key('queued', pool), 0, 0)
if not head[1] then
  return {}
end
local age_ms = now_ms() - tonumber(job_field(head[1], 'created_ms'))
if ARGV[7] == '1' and age_ms < HOLD_MS and somebody_is_idle() then
  return {}
end
redis.call('ZREM', key('queued', pool), head[1])
local id, now, fence = head[1], now_ms(), redis.call('INCR', key('fence'))
redis.call('HSET', key('job', id), 'state', 'in_progress', 'replica', replica,
  'fence', fence, 'phase', 'encode',
  'remaining_ms', job_field(id, 'est_device_ms'),
  'step', job_field(id, 'checkpoint_step') or 0)
redis.call('HINCRBY', key('job', id), 'attempts', 1)
redis.call('HSETNX', key('job', id), 'started_ms', now)
lease_until(id, pool, now + lease_ms)
redis.call('SET', key('last_lease', replica), token .. ' ' .. id .. ' ' .. fence, 'EX', 3600)
return redis.call('HGETALL', key('job', id))
