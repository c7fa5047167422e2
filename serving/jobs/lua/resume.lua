-- resume(id, fence, pool, outcome) -> 1, or 0 when the fence is stale
-- What became of the job's checkpoint: 'resumed', 'resumed_from_memory' (which is also counted as
-- the former), or the reason it was refused, which forgets it.
local id, fence, pool, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not fence_holds(id, fence) then
  return 0
end
count(pool, outcome)
if outcome == 'resumed_from_memory' then
  count(pool, 'resumed')
elseif outcome ~= 'resumed' then
  waste_steps(pool, 'lost', tonumber(job_field(id, 'checkpoint_step') or 0))
  redis.call('HDEL', key('job', id), 'checkpoint', 'checkpoint_step')
  redis.call('HSET', key('job', id), 'step', 0, 'left_device_ms', job_field(id, 'est_device_ms'))
end
return 1
