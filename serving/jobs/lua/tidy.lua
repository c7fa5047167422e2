-- tidy(attempts_max, lost_error, queue_ttl_ms, expired_error) -> how many jobs it forgot
-- What time brings about, in every pool: leases lapse, jobs that waited too long expire, ended
-- ones are forgotten, silent replicas go from the list. Any process may call it at any time.
local attempts_max, lost_error = tonumber(ARGV[1]), ARGV[2]
local queue_ttl_ms, expired_error = tonumber(ARGV[3]), ARGV[4]
local now = now_ms()

for _, pool in ipairs(redis.call('SMEMBERS', key('pools'))) do
  reap(pool, attempts_max, lost_error)
  -- Those that have waited longest are at the head. One that ran and came back has been given a
  -- replica, and is not given up for having been old.
  for _, id in ipairs(redis.call('ZRANGE', key('queued', pool), 0, 99)) do
    local got = redis.call('HMGET', key('job', id), 'created_ms', 'started_ms')
    if now - tonumber(got[1]) < queue_ttl_ms then
      break
    end
    if not got[2] then
      finish(id, pool, 'expired', 'error', expired_error)
    end
  end
  for _, replica in ipairs(redis.call('ZRANGE', key('replicas', pool), 0, -1)) do
    if redis.call('EXISTS', key('replica', replica)) == 0 then
      redis.call('ZREM', key('replicas', pool), replica)
      redis.call('ZREM', key('idle', pool), replica)
    end
  end
end

local expired = redis.call('ZRANGEBYSCORE', key('expiring'), '-inf', now, 'LIMIT', 0, 100)
for _, id in ipairs(expired) do
  forget(id)
end
return #expired
