-- recover(attempts_max, lost_error) -> how many jobs were running
-- For a stack that starts with a Redis nobody else uses: whoever held a lease is gone, so
-- nobody has to wait for it to run out. The lost run counts as an attempt.
local n = 0
for _, pool in ipairs(redis.call('SMEMBERS', key('pools'))) do
  for _, id in ipairs(redis.call('ZRANGE', key('leased', pool), 0, -1)) do
    lose(id, pool, tonumber(ARGV[1]), ARGV[2])
    n = n + 1
  end
  redis.call('DEL', key('replicas', pool), key('idle', pool), key('starting', pool))
end
redis.call('SET', key('seen'), now_ms())
return n
