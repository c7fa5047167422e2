-- announce(pool, replica, ttl_ms, age_ms, state, start_ms, field, value, …) -> 1
-- A replica says that it is there, for how long it has been, and how it is: its state ('starting',
-- 'idle', 'busy' or 'draining'), and fields of its hash, such as slots and free. start_ms, until it was
-- answered once: that it has become ready, and how long that took; else ''.
local STARTUPS_KEPT = 16
local pool, replica, ttl_ms, state, start_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local mine, now = key('replica', replica), now_ms()
local started = now - tonumber(ARGV[4])
speak()
redis.call('SADD', key('pools'), pool)
redis.call('HSET', mine, 'id', replica, 'pool', pool, 'seen_ms', now, 'started_ms', started,
  'state', state, unpack(ARGV, 7))
redis.call('PEXPIRE', mine, ttl_ms)
if state == 'starting' then
  redis.call('ZADD', key('starting', pool), started, replica)
  return 1
end
redis.call('ZREM', key('starting', pool), replica)
-- As it was said first: their order, by which leases go, does not change by how long a word takes.
redis.call('ZADD', key('replicas', pool), 'NX', started, replica)
if start_ms ~= '' and redis.call('HSETNX', mine, 'ready', 1) == 1 then
  redis.call('HINCRBY', key('starts', pool), 'ready', 1)
  redis.call('HDEL', key('starts', pool), 'failures', 'failed_ms', 'error')
  redis.call('LPUSH', key('startups', pool), start_ms)
  redis.call('LTRIM', key('startups', pool), 0, STARTUPS_KEPT - 1)
end
if state == 'idle' then
  redis.call('ZADD', key('idle', pool), now, replica)
else
  redis.call('ZREM', key('idle', pool), replica)
end
return 1
