-- submit(id, user, pool, alias, spec, est_device_ms, queued_max, retention_ms) -> the job's hash,
-- or {} when the pool already holds queued_max waiting jobs; then nothing was written.
-- Safe to repeat with the same id after a lost answer: the job is there once.
local id, user, pool, alias, spec = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local est_device_ms, queued_max, retention_ms = ARGV[6], tonumber(ARGV[7]), ARGV[8]

if job_field(id, 'seq') then
  return redis.call('HGETALL', key('job', id))
end
if redis.call('ZCARD', key('queued', pool)) >= queued_max then
  return {}
end
local seq = redis.call('INCR', key('seq'))
redis.call('HSET', key('job', id), 'id', id, 'user', user, 'pool', pool, 'alias', alias,
  'spec', spec, 'est_device_ms', est_device_ms, 'state', 'queued', 'seq', seq,
  'created_ms', now_ms(), 'retention_ms', retention_ms)
redis.call('ZADD', key('user', user, 'jobs'), seq, id)
redis.call('SADD', key('pools'), pool)
redis.call('ZADD', key('queued', pool), seq, id)
redis.call('PUBLISH', key('wake', pool), id)
return redis.call('HGETALL', key('job', id))
