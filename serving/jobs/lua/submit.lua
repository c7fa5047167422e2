-- submit(id, user, pool, alias, spec, est_device_ms, queued_max) -> {status, seq}
-- status: 'ok', or 'full' when the pool already holds queued_max waiting jobs (nothing written).
-- Safe to repeat with the same id after a lost answer: the job is there once.
local id, user, pool, alias, spec = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local est_device_ms, queued_max = ARGV[6], tonumber(ARGV[7])

local known = job_field(id, 'seq')
if known then
  return {'ok', tonumber(known)}
end
if redis.call('ZCARD', key('queued', pool)) >= queued_max then
  return {'full', 0}
end
local seq = redis.call('INCR', key('seq'))
redis.call('HSET', key('job', id), 'id', id, 'user', user, 'pool', pool, 'alias', alias,
  'spec', spec, 'est_device_ms', est_device_ms, 'state', 'queued', 'seq', seq,
  'created_ms', now_ms())
redis.call('ZADD', key('user', user, 'jobs'), seq, id)
redis.call('SADD', key('pools'), pool)
redis.call('ZADD', key('queued', pool), seq, id)
redis.call('PUBLISH', key('wake', pool), id)
return {'ok', seq}
