-- heartbeat(id, fence, pool, lease_ms, phase, step, remaining_ms, spent_ms) -> 1, or 0 when the fence is stale
-- Called when the run got further, never by a timer alone. Renews the lease from now. The first one that
-- speaks of a step says when the job had its first.
local id, fence, pool, lease_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local state, held, first, class, created, started = unpack(redis.call('HMGET', key('job', id), 'state',
  'fence', 'first_step_ms', 'class', 'created_ms', 'started_ms'))
if state ~= 'in_progress' or held ~= fence then
  return 0
end
local now = now_ms()
speak()
redis.call('HSET', key('job', id), 'phase', ARGV[5], 'step', ARGV[6], 'remaining_ms', ARGV[7],
  'spent_ms', ARGV[8])
if not first and tonumber(ARGV[6]) > 0 then
  redis.call('HSET', key('job', id), 'first_step_ms', string.format('%d', now))
  note_time(pool, class, 'wait', started - created)
  note_time(pool, class, 'first_step', now - created)
end
lease_until(id, pool, now + lease_ms)
return 1
