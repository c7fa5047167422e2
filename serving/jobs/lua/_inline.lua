-- Prepended to submit_inline, which admits what does not wait: who asked streams it, under a lease that
-- comes with the admission. Such a job has the field inline. It takes no slot of a replica (its phase is
-- that of a run that only stores its clip), runs beside its user's jobs and not as one of them, and has no
-- second attempt: once its lease lapses nobody listens any more.

-- Why it cannot be streamed beside what is, or nothing. most: of the pool, for this class; own: of the user.
local function no_room_inline(pool, user, most, own)
  if redis.call('HLEN', key('user', user, 'inline')) >= own then
    return 'streams'
  elseif redis.call('ZCARD', key('leased', pool)) >= most then
    return 'pool'
  end
end

-- Instead of a place in the queue. The class had no turn, so only the tenant is charged.
local function lease_inline(id, pool, user, class, est, now, lease_ms, holder)
  local fence, weight = string.format('%d', redis.call('INCR', key('fence'))), tier_of(user)
  local now_text, until_ms = string.format('%d', now), string.format('%d', now + lease_ms)
  redis.call('HSET', key('job', id), 'inline', '1', 'state', 'in_progress', 'replica', holder, 'fence', fence,
    'phase', 'store', 'leased_ms', now_text, 'started_ms', now_text, 'lease_until_ms', until_ms,
    'seat', SEATS[class], 'remaining_ms', est, 'step', '0', 'attempts', '1', 'charged_ms', est, 'weight', weight)
  redis.call('HSET', key('user', user, 'inline'), id, '')
  redis.call('SADD', key('pools'), pool)
  redis.call('ZADD', key('leased', pool), until_ms, id)
  add_to_counter(pool, class, user, est / weight)
  return fence
end
