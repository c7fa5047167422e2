-- resume(id, fence, pool, outcome) -> 1, or 0 when the fence is stale
-- What became of the job's checkpoint: 'resumed', or the reason it was refused, which also
-- forgets it.
local id, fence, pool, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not fence_holds(id, fence) then
  return 0
end
count(pool, outcome)
if outcome ~= 'resumed' then
  redis.call('HDEL', key('job', id), 'checkpoint', 'checkpoint_step')
  redis.call('HSET', key('job', id), 'step', 0)
end
return 1
