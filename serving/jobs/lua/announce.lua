-- announce(pool, replica, ttl_ms, age_ms, field, value, …) -> 1
-- A replica says that it is there, for how long it has been, and how it is: fields of its hash,
-- such as slots and free.
local pool, replica, ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local mine, now = key('replica', replica), now_ms()
local started = now - tonumber(ARGV[4])
speak(now)
redis.call('SADD', key('pools'), pool)
redis.call('HSET', mine, 'id', replica, 'pool', pool, 'seen_ms', now, 'started_ms', started,
  unpack(ARGV, 5))
redis.call('PEXPIRE', mine, ttl_ms)
redis.call('ZADD', key('replicas', pool), started, replica)
local got = redis.call('HMGET', mine, 'slots', 'free')
if got[1] and got[1] == got[2] then
  redis.call('ZADD', key('idle', pool), now, replica)
else
  redis.call('ZREM', key('idle', pool), replica)
end
return 1
