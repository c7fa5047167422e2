-- submit(id, user, pool, asked, shape, rows, est_device_ms, queued_max, retention_ms, service_tier,
-- body, idempotency_key, idempotent_ms, retried, retry_ms, price, max_credits, inside, beyond,
-- generations, gpu_ms, queued_jobs, per_minute, days, surge_generations, surge_inside, surge_ms, dry,
-- inline_ms, holder, inline_own)
-- -> {outcome, …}; '' is none
--   {'accepted', limits, "seq created_ms class from credits"}; if dry, it would be, and nothing is written;
--     if inline, the fence of its lease behind it
--   {'replayed', limits, the job's hash or {} if it was deleted, the stored response or ''}
--   {'mismatch'}: the key was used for another body
--   {'rate' | 'pool' | 'own' | 'streams' | 'generations' | 'gpu' | 'priority', limits, in how long (ms, or -1)}
--   {'credits' | 'max_credits' | 'debt', limits, the same, what may be spent, what is owed}: there are not
--     enough, it costs more than the caller said, or something is owed
-- limits: as _admission.lua has them. price (milli-credits): '' where nobody said that credits may pay for
-- it; then the ledger is not needed. The whole waterfall: replay, rate, own bound, allowance,
-- credits, relaxed, bound of the pool, refuse. What is refused leaves nothing behind but its counts, by reason and
-- against the rate.
-- Safe to repeat with the same id after a lost answer: the job is there once.
-- The pool's queue holds queued_max jobs, the last of them only of the higher classes.
-- As submit_inline, with inline_ms, it does not enqueue: holder has a lease of inline_ms at once (_inline.lua).
-- Then queued_max bounds what is streamed in the pool, and inline_own what is of this user.
-- It is the one script whose rate bounds all others, so it asks nothing twice.
local QUEUE_SHARE = {burst = 1, standard = 0.9, relaxed = 0.8}
local id, user, pool, asked, shape, rows, est, queued_max, retention_ms, service_tier, body,
  idempotency_key, idempotent_ms, retried, retry_ms, price, max_credits, inside, beyond, generations,
  gpu_ms, queued_jobs, per_minute, days, surge_generations, surge_inside, surge_ms, dry, inline_ms, holder,
  inline_own = unpack(ARGV)
local now, est_device_ms = now_ms(), tonumber(est)
local limits = limits_now(user, pool, now, days, per_minute, surge_ms)
local function note_refused(reason)
  if dry ~= '1' then
    redis.call('HINCRBY', key('refused', pool), reason, 1)
  end
end

-- Who was here already.
local remembered = idempotency_key ~= '' and key('idempotent', user, idempotency_key)
local before = remembered and redis.call('GET', remembered)
-- What a key remembers came with its job, so where it remembers nothing there is no job.
local seq, fence = (before or not remembered) and redis.call('HGET', key('job', id), 'seq')
if seq then
  local created_ms, was_class, was_from, was_credits
  created_ms, was_class, was_from, was_credits, fence =
    unpack(redis.call('HMGET', key('job', id), 'created_ms', 'class', 'from', 'credits', 'fence'))
  return {'accepted', limits_told(limits),
    table.concat({seq, created_ms, was_class, was_from, was_credits or '0', inline_ms and fence or nil}, ' ')}
end
if before then
  local of_body, job = string.match(before, '^(%S+) (%S+)$')
  if of_body and of_body ~= body then
    note_refused('mismatch')
    return {'mismatch'}
  elseif of_body then
    note_refused('replayed')
    return {'replayed', limits_told(limits), redis.call('HGETALL', key('job', job)),
      redis.call('GET', key('answer', user, idempotency_key)) or ''}
  end
end
-- A key says it better.
local same = not remembered and body ~= '' and tonumber(retry_ms) > 0 and key('same', user, body)
if same and retried ~= '' then
  local job = redis.call('HGETALL', key('job', redis.call('GET', same) or ''))
  if #job > 0 then
    note_refused('replayed')
    return {'replayed', limits_told(limits), job, ''}
  end
end

-- Whether there is room.
if per_minute ~= '' then
  local wait_ms = take_rate(limits.rate, dry)
  if wait_ms then
    note_refused('rate')
    return {'rate', limits_told(limits), wait_ms}
  end
end
if not inline_ms and queued_jobs ~= '' and queued_of(user) >= tonumber(queued_jobs) then
  keep_used(user, limits, dry)
  note_refused('own')
  return {'own', limits_told(limits), -1}
end

-- In which class, and at whose expense.
local short
if limits.surges then
  inside = surge_inside ~= '' and surge_inside or inside
  generations = surge_generations ~= '' and surge_generations or generations
end
if generations ~= '' and limits.generations + 1 > tonumber(generations) then
  short = 'generations'
elseif gpu_ms ~= '' and limits.gpu_ms + est_device_ms > tonumber(gpu_ms) then
  short = 'gpu'
end
local class, from
if service_tier == 'flex' and beyond == 'relaxed' then
  class, from = 'relaxed', 'relaxed'
elseif service_tier == 'flex' and not short then
  class, from = 'relaxed', 'allowance'
elseif service_tier == 'priority' and not short then
  -- What the tier does not give, credits will have to.
  class, from = inside == 'burst' and 'burst' or nil, 'allowance'
  short = 'priority'
elseif not short then
  class, from = (service_tier == 'default' and inside == 'burst') and 'standard' or inside, 'allowance'
end
local credits, balance, owed = 0, 0, 0
if not class and price ~= '' then
  credits = tonumber(price)
  balance, owed = spendable(user, credits)
  if max_credits ~= '' and credits > tonumber(max_credits) then
    short = 'max_credits'
  elseif owed > 0 and credits > 0 then
    short = 'debt'
  elseif balance < credits then
    short = 'credits'
  else
    class, from = 'burst', 'credits'
  end
end
if not class and service_tier == 'auto' and beyond == 'relaxed' then
  class, from, credits = 'relaxed', 'relaxed', 0
end
if not class then
  keep_used(user, limits, dry)
  note_refused(short)
  local wait_ms = short ~= 'priority' and limits.ends and math.ceil(limits.ends - now) or -1
  return {short, limits_told(limits), wait_ms, string.format('%d', balance),
    string.format('%d', owed)}
end
local queued = redis.call('ZCARD', key('queued', pool))
local no_room = queued >= queued_max * QUEUE_SHARE[class] and 'pool'
if inline_ms then
  no_room = no_room_inline(pool, user, queued_max * QUEUE_SHARE[class], tonumber(inline_own))
end
if no_room then
  keep_used(user, limits, dry)
  note_refused(no_room)
  return {no_room, limits_told(limits), -1}
elseif dry == '1' then
  return {'accepted', limits_told(limits),
    string.format('0 %d %s %s %d', now, class, from, credits)}
end

-- Yes.
local now_text = string.format('%d', now)
if credits > 0 and not hold(user, id, credits) then
  -- There is enough of it, so this was held before: for the job that this very call made, whose answer was
  -- lost, and which was deleted since.
  note_refused('replayed')
  return {'replayed', limits_told(limits), {}, ''}
end
seq = string.format('%d', redis.call('INCR', key('seq')))
local more, credits_text = {}, '0'
if credits > 0 then
  credits_text = whole(credits)
  more = {'credits', credits_text}
elseif from == 'allowance' and limits.day then
  more = {'day', limits.day}
  limits.generations, limits.gpu_ms = limits.generations + 1, limits.gpu_ms + est_device_ms
end
keep_used(user, limits)
redis.call('HSET', key('job', id), 'id', id, 'user', user, 'pool', pool, 'seq', seq, 'state', 'queued',
  'class', class, 'from', from, 'shape', shape, 'rows', rows, 'est_device_ms', est,
  'created_ms', now_text, 'retention_ms', retention_ms, 'asked', asked, unpack(more))
if inline_ms then
  fence = lease_inline(id, pool, user, class, est, now, tonumber(inline_ms), holder)
  return {'accepted', limits_told(limits),
    string.format('%s %s %s %s %d %s', seq, now_text, class, from, credits, fence)}
end
redis.call('ZADD', list_of(user, id), seq, id)
if queued == 0 then
  redis.call('SADD', key('pools'), pool)
end
enqueue_new(id, pool, place_text(seq, now_text, est, est, '0', rows, shape, id), seq, now_text, est, est, user,
  class, now_text)
if remembered then
  redis.call('SET', remembered, body .. ' ' .. id, 'PX', idempotent_ms)
end
if same then
  redis.call('SET', same, id, 'PX', retry_ms)
end
return {'accepted', limits_told(limits), seq .. ' ' .. now_text .. ' ' .. class .. ' ' .. from .. ' ' .. credits_text}
