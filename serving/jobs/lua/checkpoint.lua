-- checkpoint(id, fence, file, step, left_device_ms) -> {1, the file it replaces or ''}, or {0, ''}
-- when stale.
-- The file is in the store already: from now on the next lease goes on from it. Repeated after
-- a lost answer it replaces nothing.
local id, fence, file, step = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not fence_holds(id, fence) then
  return {0, ''}
end
local before = job_field(id, 'checkpoint') or ''
if before == file then
  before = ''
end
-- A store may finish its uploads in another order than they began.
if tonumber(job_field(id, 'checkpoint_step') or 0) > tonumber(step) then
  return {1, file}
end
redis.call('HSET', key('job', id), 'checkpoint', file, 'checkpoint_step', step,
  'left_device_ms', ARGV[5])
return {1, before}
