-- Prepended to every script of this room: where jobs wait, and what tenants were leased.
--
-- Each user's waiting jobs of a class have lines of their own, so a lease sees the heads of a few
-- tenants however long the queue is. A user who runs as many jobs as the tier allows is parked: out
-- of every ready set until one of them ends.

-- What the rank of a job that waits needs, and whether it can run beside others; none of it changes while
-- it waits. All are texts: what is formatted once need not be again. So it is with every number here that is
-- given to Redis: as a number it would be written with 17 digits, which takes three times as long.
local function place_text(seq, created, total, left, attempts, rows, shape, id)
  return string.sub('00000000000', #seq) .. seq .. ' ' .. created .. ' ' .. total .. ' ' .. left .. ' '
    .. attempts .. ' ' .. rows .. ' ' .. shape .. ' ' .. id
end

-- All of it is left until a checkpoint saves some.
local function place_of(id)
  local seq, created, total, left, attempts, rows, shape, user, class = unpack(redis.call('HMGET',
    key('job', id), 'seq', 'created_ms', 'est_device_ms', 'left_device_ms', 'attempts', 'rows', 'shape',
    'user', 'class'))
  left = left or total
  return place_text(seq, created, total, left, attempts or '0', rows, shape, id), left, user, class, total,
    seq, created
end

local function line(pool, class, user, order)
  return key('line', pool, class, user, order)
end

local function heads_key(pool, class, user)
  return key('heads', pool, class, user)
end

-- The weight of a user's tier, and how many jobs it may run at once, or nothing. A tier that is no
-- longer there counts as the default one.
local tiers_seen = {}
local function tier_of(user)
  local seen = tiers_seen[user]
  if not seen then
    local tiers, own = key('tiers'), redis.call('HGET', key('user', user), 'tier') or ''
    local weight, jobs, other =
      unpack(redis.call('HMGET', tiers, own .. ':weight', own .. ':running_jobs', 'default'))
    if not weight and other then
      weight, jobs = unpack(redis.call('HMGET', tiers, other .. ':weight', other .. ':running_jobs'))
    end
    seen = weight and {tonumber(weight), tonumber(jobs or nil)} or {1}
    tiers_seen[user] = seen
  end
  return seen[1], seen[2]
end

local function fair_field(pool, class, name)
  return tonumber(redis.call('HGET', key('fair', pool), class .. ':' .. name) or 0)
end

local function credits_of(pool)
  local got = redis.call('HMGET', key('fair', pool), 'burst:credit', 'standard:credit',
    'relaxed:credit')
  return {burst = tonumber(got[1] or 0), standard = tonumber(got[2] or 0),
    relaxed = tonumber(got[3] or 0)}
end

local function counter_of(pool, class, user)
  return tonumber(redis.call('ZSCORE', key('counters', pool, class), user) or nil)
end

local function may_run_another(user)
  local _, most = tier_of(user)
  return not most or redis.call('HLEN', key('user', user, 'running')) < most
end

-- The least counter of those who wait, or nothing; the highest it ever was; the window; the last that
-- one was lifted to.
local function levels(pool, class)
  local got = redis.call('HMGET', key('fair', pool), class .. ':reached', class .. ':window', class .. ':lifted')
  local least = redis.call('ZRANGE', key('ready', pool, class), 0, 0, 'WITHSCORES')[2]
  return tonumber(least or nil), tonumber(got[1] or 0), tonumber(got[2] or 0), tonumber(got[3] or -1)
end

-- To where it was lifted, or woken: a refund of what was charged before does not go below. A new one was
-- charged nothing.
local function lift(pool, class, user, counter, had)
  redis.call('ZADD', key('counters', pool, class), counter, user)
  if had then
    redis.call('ZADD', key('floors', pool, class), counter, user)
  end
end

-- The user's first job of this class begins to wait.
local function make_ready(pool, class, user)
  local ready = key('ready', pool, class)
  local least, reached, width, last = levels(pool, class)
  local had = counter_of(pool, class, user)
  local counter = lifted(had, least, reached, last, width)
  if counter ~= had then
    lift(pool, class, user, counter, had)
    redis.call('HSET', key('fair', pool), class .. ':lifted', counter)
  end
  if may_run_another(user) then
    redis.call('ZADD', ready, counter, user)
  else
    redis.call('SADD', key('parked'), user)
  end
end

-- After one more or one less of the user's jobs runs.
local function park_or_wake(user)
  local wakes = may_run_another(user)
  if not wakes or redis.call('SREM', key('parked'), user) == 1 then
    for _, where in ipairs(redis.call('HKEYS', key('user', user, 'lines'))) do
      local pool, class = string.match(where, '^(%S+) (%S+)$')
      if wakes then
        local least, reached, width = levels(pool, class)
        local had = counter_of(pool, class, user) or reached
        local counter = woken(had, least, reached, width)
        if counter ~= had then
          lift(pool, class, user, counter, had)
        end
        redis.call('ZADD', key('ready', pool, class), counter, user)
      else
        redis.call('ZREM', key('ready', pool, class), user)
        redis.call('SADD', key('parked'), user)
      end
    end
  end
end

local function add_to_backlog(pool, class, jobs, ms)
  local backlog = key('backlog', pool)
  redis.call('HINCRBY', backlog, class .. ':jobs', jobs)
  redis.call('HINCRBY', backlog, class .. ':ms', ms)
end

-- Of a job that waits, how much a checkpoint saves: most have none.
local function add_saved(pool, class, sign, total, left)
  local saved = total - left
  if saved ~= 0 then
    redis.call('HINCRBY', key('backlog', pool), class .. ':saved_ms', string.format('%d', sign * saved))
  end
end

-- Into the user's lines.
local function enqueue_new(id, pool, place, seq, created, total, left, user, class, now)
  redis.call('ZADD', key('queued', pool), seq, id)
  local scores = order_scores(tonumber(created), tonumber(total), tonumber(left))
  local lines = key('line', pool, class, user) .. ':'
  for i = 1, #ORDERS do
    redis.call('ZADD', lines .. ORDERS[i].name, string.format('%d', scores[i]), place)
  end
  add_to_backlog(pool, class, '1', left)
  if redis.call('HINCRBY', key('user', user, 'lines'), pool .. ' ' .. class, '1') == 1 then
    make_ready(pool, class, user)
  else
    redis.call('DEL', heads_key(pool, class, user))
  end
  redis.call('PUBLISH', key('wake', pool),
    now .. ' ' .. created .. ' ' .. total .. ' ' .. left .. ' ' .. SEATS[class])
end

-- Back into them.
local function enqueue(id, pool)
  local place, left, user, class, total, seq, created = place_of(id)
  add_saved(pool, class, 1, total, left)
  enqueue_new(id, pool, place, seq, created, total, left, user, class, string.format('%d', now_ms()))
end

-- Out of them. Whoever found it there knows its place; for anyone else place_of does.
local function take_out(id, pool, place, left, user, class, total)
  redis.call('ZREM', key('queued', pool), id)
  for _, order in ipairs(ORDERS) do
    redis.call('ZREM', line(pool, class, user, order.name), place)
  end
  redis.call('DEL', heads_key(pool, class, user))
  add_to_backlog(pool, class, '-1', '-' .. left)
  add_saved(pool, class, -1, total, left)
  if redis.call('HINCRBY', key('user', user, 'lines'), pool .. ' ' .. class, '-1') == 0 then
    redis.call('HDEL', key('user', user, 'lines'), pool .. ' ' .. class)
    redis.call('ZREM', key('ready', pool, class), user)
  end
end

-- Out of them, if it waits.
local function dequeue(id, pool)
  if redis.call('ZSCORE', key('queued', pool), id) then
    take_out(id, pool, place_of(id))
  end
end

local function add_to_counter(pool, class, user, ms)
  local floor = ms < 0 and redis.call('ZSCORE', key('floors', pool, class), user)
  local counter = corrected(counter_of(pool, class, user) or 0, ms, tonumber(floor or nil))
  redis.call('ZADD', key('counters', pool, class), counter, user)
  redis.call('ZADD', key('ready', pool, class), 'XX', counter, user)
end

-- A job of this tenant and class was leased to run until its end: both are charged what that is
-- estimated to take. To be called once it is taken out, with the classes that waited before and their
-- credits. Returns the tenant's weight, as it was charged.
local function charge(id, pool, class, tenant, left, waiting, credits, shares)
  local weight = tier_of(tenant.user)
  local after = after_lease(credits, waiting, class, left, shares)
  local fair = tenant.fair
  redis.call('HSET', key('fair', pool), 'burst:credit', after.burst, 'standard:credit',
    after.standard, 'relaxed:credit', after.relaxed,
    class .. ':reached', math.max(fair.reached, fair.least),
    class .. ':window', window(fair.window, left, weight),
    class .. ':passed', passed_over(fair.passed, left, weight, tenant.is_least))
  redis.call('HSET', key('user', tenant.user, 'running'), id, '')
  add_to_counter(pool, class, tenant.user, left / weight)
  park_or_wake(tenant.user)
  return weight
end

-- What is left of this job will be leased again, so its class is not to pay for it twice.
local function unlease_class(id, pool)
  local class, total, left =
    unpack(redis.call('HMGET', key('job', id), 'class', 'est_device_ms', 'left_device_ms'))
  local credit = fair_field(pool, class, 'credit')
  if credit < 0 then
    redis.call('HSET', key('fair', pool), class .. ':credit', math.min(0, credit + (left or total)))
  end
end

-- A lease ended. The tenant was charged what the job would have spent by its end, over the weight it
-- had then; now it is known what it has. lost: the work that no checkpoint saved counts as not done.
local function settle(id, pool, lost)
  local user, class, charged, weight, spent, total, left, inline = unpack(redis.call('HMGET', key('job', id),
    'user', 'class', 'charged_ms', 'weight', 'spent_ms', 'est_device_ms', 'left_device_ms', 'inline'))
  redis.call('HDEL', key('user', user, inline and 'inline' or 'running'), id)
  if charged then
    spent = tonumber(spent or 0)
    if lost then
      spent = math.max(0, math.min(spent, charged - (left or total)))
      redis.call('HSET', key('job', id), 'spent_ms', spent)
    end
    redis.call('HDEL', key('job', id), 'charged_ms', 'weight')
    add_to_counter(pool, class, user, (spent - charged) / weight)
  end
  park_or_wake(user)
end
