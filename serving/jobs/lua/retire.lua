-- retire(pool, replica) -> 1
-- A replica says that it leaves.
redis.call('DEL', key('replica', ARGV[2]), key('last_lease', ARGV[2]))
redis.call('ZREM', key('replicas', ARGV[1]), ARGV[2])
redis.call('ZREM', key('idle', ARGV[1]), ARGV[2])
redis.call('ZREM', key('starting', ARGV[1]), ARGV[2])
return 1
