-- start_failed(pool, replica, error) -> 1
-- A replica that had announced that it starts will not become ready. error: the class of what it died of.
fail_start(ARGV[1], ARGV[2], ARGV[3])
redis.call('DEL', key('replica', ARGV[2]))
return 1
