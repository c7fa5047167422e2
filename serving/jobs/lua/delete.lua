-- delete(id, user, error) -> 1, or 0 if this user has no such job
-- Removes the record. One that was still active is cancelled first, so it is counted once.
local id, user, error = ARGV[1], ARGV[2], ARGV[3]
local got = redis.call('HMGET', key('job', id), 'user', 'pool', 'state')
if got[1] ~= user then
  return 0
end
if got[3] == 'queued' or got[3] == 'in_progress' then
  finish(id, got[2], 'cancelled', 'error', error)
  drop_run(id, got[2])
end
redis.call('DEL', key('job', id))
redis.call('ZREM', key('user', user, 'jobs'), id)
return 1
