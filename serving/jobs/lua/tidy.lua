-- tidy(attempts_max, lost_error, queue_ttl_ms, expired_error) -> how many jobs it forgot
-- What time brings about, in every pool: leases lapse, jobs that waited too long expire, ended
-- ones are forgotten, silent replicas go from the list. Any process may call it at any time.
local attempts_max, lost_error = tonumber(ARGV[1]), ARGV[2]
local queue_ttl_ms, expired_error = tonumber(ARGV[3]), ARGV[4]
local now = now_ms()

-- Counters that say little more than a tenant's return would: of those who neither wait nor run, no more
-- than a window above what those who wait have reached. Some at each call, and all in turn.
local function forget_counters(pool, class)
  local counters, fair = key('counters', pool, class), key('fair', pool)
  local most = fair_field(pool, class, 'reached') + fair_field(pool, class, 'window')
  local at = fair_field(pool, class, 'tidied')
  local users = redis.call('ZRANGEBYSCORE', counters, '-inf', most, 'LIMIT', at, 100)
  local kept = 0
  for _, user in ipairs(users) do
    if redis.call('HEXISTS', key('user', user, 'lines'), pool .. ' ' .. class) == 0
        and redis.call('EXISTS', key('user', user, 'running'), key('user', user, 'inline')) == 0 then
      redis.call('ZREM', counters, user)
      redis.call('ZREM', key('floors', pool, class), user)
    else
      kept = kept + 1
    end
  end
  local next_at = #users == 100 and at + kept or 0
  if next_at ~= at then
    redis.call('HSET', fair, class .. ':tidied', next_at)
  end
end

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
  for _, class in ipairs(CLASSES) do
    forget_counters(pool, class)
  end
  for _, replica in ipairs(redis.call('ZRANGE', key('replicas', pool), 0, -1)) do
    if redis.call('EXISTS', key('replica', replica)) == 0 then
      redis.call('ZREM', key('replicas', pool), replica)
      redis.call('ZREM', key('idle', pool), replica)
    end
  end
  -- One that was killed while it loaded its weights cannot say so.
  for _, replica in ipairs(redis.call('ZRANGE', key('starting', pool), 0, -1)) do
    if redis.call('EXISTS', key('replica', replica)) == 0 then
      fail_start(pool, replica, 'silent')
    end
  end
end

-- Their tier may let them run more than when they were parked.
for _, user in ipairs(redis.call('SRANDMEMBER', key('parked'), 100)) do
  park_or_wake(user)
end

-- Credits that nobody used in time.
local due = redis.call('ZRANGEBYSCORE', key('grants_expiring'), '-inf', now, 'LIMIT', 0, 100)
for _, ref in ipairs(due) do
  expire(ref)
end

local expired = redis.call('ZRANGEBYSCORE', key('expiring'), '-inf', now, 'LIMIT', 0, 100)
for _, id in ipairs(expired) do
  forget(id)
end
return #expired
