-- heartbeat(id, fence, pool, lease_ms, phase, step, remaining_ms, spent_ms) -> 1, or 0 when the fence is stale
-- Called when the run got further, never by a timer alone. Renews the lease from now.
local id, fence, pool, lease_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if not fence_holds(id, fence) then
  return 0
end
local now = now_ms()
speak(now)
redis.call('HSET', key('job', id), 'phase', ARGV[5], 'step', ARGV[6], 'remaining_ms', ARGV[7],
  'spent_ms', ARGV[8])
lease_until(id, pool, now + lease_ms)
return 1
