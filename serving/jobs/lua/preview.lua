-- preview(id, fence, file, step) -> 1, or 0 when the job has ended or another lease goes on with it
-- The file is in the store already. A run that has just yielded may still say what it last saw.
local id, fence, file, step = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local got = redis.call('HMGET', key('job', id), 'state', 'fence')
if got[2] ~= fence or (got[1] ~= 'in_progress' and got[1] ~= 'queued') then
  return 0
end
redis.call('HSET', key('job', id), 'preview', file, 'preview_step', step)
return 1
