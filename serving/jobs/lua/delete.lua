-- delete(id, user, error) -> 1, or 0 if this user has no such job
-- Removes the record. One that was still active is cancelled first, so it is counted once.
-- Safe to repeat after a lost answer: for an hour a deleted job is known to have been.
local id, user, error = ARGV[1], ARGV[2], ARGV[3]
-- One that is streamed is no such job.
local got = redis.call('HMGET', key('job', id), 'user', 'pool', 'state', 'inline')
if not got[1] then
  local gone = redis.call('GET', key('gone', id)) or ''
  return string.match(gone, '^%d+ (.*)$') == user and 1 or 0
end
if got[1] ~= user or got[4] then
  return 0
end
if got[3] == 'queued' or got[3] == 'in_progress' then
  finish(id, got[2], 'cancelled', 'error', error)
  drop_run(id, got[2])
end
forget(id)
return 1
