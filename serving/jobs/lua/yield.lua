-- yield(id, fence, pool, holder, spent_ms, step) -> 1, or 0 when the fence is stale
-- Hands a running job back to the queue, after so many steps. A yield is not an attempt. holder: the
-- replica, if it keeps the checkpoint in memory, or ''.
local id, fence, pool = ARGV[1], ARGV[2], ARGV[3]
if not fence_holds(id, fence) then
  return 0
end
redis.call('HINCRBY', key('job', id), 'attempts', -1)
count(pool, 'yielded')
waste_steps(pool, 'redone', unsaved_steps(id, ARGV[6]))
redis.call('HSET', key('job', id), 'spent_ms', ARGV[5])
settle(id, pool)
requeue(id, pool, ARGV[4])
return 1
