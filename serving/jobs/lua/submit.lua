-- submit(id, user, pool, alias, spec, shape, rows, est_device_ms, queued_max, retention_ms) -> the
-- job's hash, or {} when the pool already holds queued_max waiting jobs; then nothing was written.
-- Safe to repeat with the same id after a lost answer: the job is there once.
local id, user, pool, alias, spec = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local shape, rows, est_device_ms = ARGV[6], ARGV[7], ARGV[8]
local queued_max, retention_ms = tonumber(ARGV[9]), ARGV[10]

if job_field(id, 'seq') then
  return redis.call('HGETALL', key('job', id))
end
if redis.call('ZCARD', key('queued', pool)) >= queued_max then
  return {}
end
local seq = redis.call('INCR', key('seq'))
redis.call('HSET', key('job', id), 'id', id, 'user', user, 'pool', pool, 'alias', alias,
  'spec', spec, 'shape', shape, 'rows', rows, 'est_device_ms', est_device_ms,
  'left_device_ms', est_device_ms, 'seq', seq, 'created_ms', now_ms(), 'retention_ms', retention_ms)
redis.call('ZADD', key('user', user, 'jobs'), seq, id)
redis.call('SADD', key('pools'), pool)
enqueue(id, pool)
return redis.call('HGETALL', key('job', id))
