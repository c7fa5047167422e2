-- announce(pool, replica, ttl_ms, field, value, …) -> 1
-- A replica says that it is there, and how it is: fields of its hash, such as slots and free.
local pool, replica, ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local mine = key('replica', replica)
redis.call('SADD', key('pools'), pool)
redis.call('HSETNX', mine, 'started_ms', now_ms())
redis.call('HSET', mine, 'id', replica, 'pool', pool, 'seen_ms', now_ms(), unpack(ARGV, 4))
redis.call('PEXPIRE', mine, ttl_ms)
redis.call('ZADD', key('replicas', pool), redis.call('HGET', mine, 'started_ms'), replica)
return 1
