-- finish(id, fence, pool, state, field, value, spent_ms, made_credits) -> 1, or 0 when the fence is stale
-- state is 'completed' with field 'result', or 'failed' with field 'error'; value is JSON. Of one that is
-- heard while it is made, 'cancelled' says that its listener left; made_credits is what was made costs by then.
-- Safe to repeat after a lost answer: the same fence finds its own ending and says 1.
local id, fence, pool, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not fence_holds(id, fence) then
  local got = redis.call('HMGET', key('job', id), 'state', 'fence', ARGV[5])
  return (got[1] == state and got[2] == fence and got[3] == ARGV[6]) and 1 or 0
end
redis.call('HSET', key('job', id), 'spent_ms', ARGV[7])
if ARGV[8] then
  redis.call('HSET', key('job', id), 'made_credits', ARGV[8])
end
finish(id, pool, state, ARGV[5], ARGV[6])
return 1
