-- place(id, pool, shares as JSON, user, class, est_device_ms) -> {how many waiting jobs go before this one, their work (ms), what
-- each running job of the pool has left (ms), …}
-- As of now; for id '', of a job of this user, class and work that would be submitted now. While few wait, the leases to come are played through, one after another, as lease.lua
-- would grant them. Where many do, it is estimated by tenant and class. Runs that only store their clip hold no slot,
-- so they are left out.
local FEW, RANKED, SUMMED, TENANTS, RUNNING = 48, 32, 128, 64, 64
local ANY, SHORTER = 1 / 4, 7 / 8
local id, pool, shares = ARGV[1], ARGV[2], cjson.decode(ARGV[3])
local now = now_ms()
local mine, class, my_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])
local new = id == '' and {id = id, seq = math.huge, seat = SEATS[class],
  contender = {now, my_ms, my_ms, SEATS[class]}}

local function jobs_of(user, of_class, most)
  local jobs = {}
  local places = redis.call('ZRANGE', line(pool, of_class, user, ORDERS[1].name), 0, most - 1)
  for _, place in ipairs(places) do
    jobs[#jobs + 1] = waiting_job(place, nil, of_class, now)
  end
  return jobs
end

-- As it is, or as it would be lifted.
local function my_counter()
  local counter = counter_of(pool, class, mine)
  if new and redis.call('HEXISTS', key('user', mine, 'lines'), pool .. ' ' .. class) == 0 then
    local least, reached, width, last = levels(pool, class)
    return lifted(counter, least, reached, last, width)
  end
  return counter or 0
end

-- Every tenant that may be leased a job, and this one, by class.
local function everybody()
  local classes = {}
  for _, each in ipairs(CLASSES) do
    local ready = redis.call('ZRANGE', key('ready', pool, each), 0, -1, 'WITHSCORES')
    local tenants, here = {}, false
    for i = 1, #ready, 2 do
      here = here or ready[i] == mine
      tenants[#tenants + 1] = {user = ready[i], counter = tonumber(ready[i + 1])}
    end
    if each == class and not here then
      tenants[#tenants + 1] = {user = mine, counter = my_counter()}
    end
    for _, tenant in ipairs(tenants) do
      tenant.weight, tenant.jobs = tier_of(tenant.user), jobs_of(tenant.user, each, FEW)
      if new and each == class and tenant.user == mine then
        tenant.jobs[#tenant.jobs + 1] = new
      end
    end
    classes[each] = {tenants = tenants, window = fair_field(pool, each, 'window'),
      passed = fair_field(pool, each, 'passed')}
  end
  return classes
end

local function has_less(a, b)
  if a.counter ~= b.counter then
    return a.counter < b.counter
  end
  return a.user < b.user
end

-- The tenant and the number of its job that goes first in a class, and whether it has the least counter.
local function next_of(group, at)
  local tenants = {}
  for _, tenant in ipairs(group.tenants) do
    if #tenant.jobs > 0 then
      tenants[#tenants + 1] = tenant
    end
  end
  table.sort(tenants, has_less)
  local least, overdue = tenants[1], is_overdue(group.passed, group.window)
  local first, whose, number
  for n = 1, math.min(#tenants, CANDIDATES) do
    local tenant = tenants[n]
    if n == 1 or (not overdue and tenant.counter <= least.counter + group.window) then
      for i, job in ipairs(tenant.jobs) do
        local wants = job.contender
        job.urgency = urgency(wants[1], wants[2], wants[3], at)
        if not first or goes_first(job, first) then
          first, whose, number = job, tenant, i
        end
      end
    end
  end
  return whose, number, whose == least
end

local function played_through(lanes)
  local classes, credits = everybody(), credits_of(pool)
  local ahead, work_ms = 0, 0
  while ahead < FEW do
    local waiting = {}
    for name, group in pairs(classes) do
      for _, tenant in ipairs(group.tenants) do
        waiting[name] = waiting[name] or #tenant.jobs > 0 or nil
      end
    end
    local chosen = class_order(credits, waiting)[1]
    local group = classes[chosen]
    local tenant, number, is_least = next_of(group, now + work_ms / lanes)
    local job = table.remove(tenant.jobs, number)
    if job.id == id then
      break
    end
    local left_ms = job.contender[3]
    ahead, work_ms = ahead + 1, work_ms + left_ms
    tenant.counter = tenant.counter + left_ms / tenant.weight
    group.window = window(group.window, left_ms, tenant.weight)
    group.passed = passed_over(group.passed, left_ms, tenant.weight, is_least)
    credits = after_lease(credits, waiting, chosen, left_ms, shares)
  end
  return ahead, work_ms
end

local function backlog_of(of_class)
  local got = redis.call('HMGET', key('backlog', pool), of_class .. ':jobs', of_class .. ':ms')
  return tonumber(got[1] or 0), tonumber(got[2] or 0)
end

-- How many of the own tenant's jobs go first, and their work. Only the first few are ranked; any other
-- goes where its work puts it, and the job half way there stands for all before it.
local function of_my_own()
  local own = line(pool, class, mine, ORDERS[1].name)
  local place = new and redis.call('ZCOUNT', own, '-inf', my_ms)
    or redis.call('ZRANK', own, (place_of(id)))
  if place >= SUMMED then
    local half = math.floor(place / 2)
    return place, place * redis.call('ZRANGE', own, half, half, 'WITHSCORES')[2]
  elseif place >= RANKED then
    local before, sum_ms = redis.call('ZRANGE', own, 0, place - 1, 'WITHSCORES'), 0
    for i = 2, #before, 2 do
      sum_ms = sum_ms + before[i]
    end
    return place, sum_ms
  end
  local jobs, ahead, work_ms = jobs_of(mine, class, RANKED), 0, 0
  local me = new
  if new then
    me.urgency = urgency(now, my_ms, my_ms, now)
  end
  for _, job in ipairs(jobs) do
    me = job.id == id and job or me
  end
  for _, job in ipairs(jobs) do
    if job.id ~= id and goes_first(job, me) then
      ahead, work_ms = ahead + 1, work_ms + job.contender[3]
    end
  end
  return ahead, work_ms
end

-- What the class goes first with. Other tenants do so with what brings them to within ANY of a window of
-- where this tenant's counter will be then, and from there to SHORTER of one beyond it with jobs that are
-- shorter than this one; both are as simulations had it. The first few of them stand for all.
local function of_my_class()
  local jobs, ms = backlog_of(class)
  local mean_ms = math.max(1, ms / math.max(1, jobs))
  local ahead, work_ms = of_my_own()
  local until_ms = my_counter() + work_ms / tier_of(mine)
  local ready, wide = key('ready', pool, class), fair_field(pool, class, 'window')
  wide = math.max(wide, mean_ms)
  local seen = redis.call('ZRANGE', ready, 0, TENANTS - 1, 'WITHSCORES')
  local before = redis.call('ZCOUNT', ready, '-inf', until_ms + SHORTER * wide)
  local others, others_ms, n = 0, 0, 0
  for i = 1, #seen, 2 do
    local user, counter = seen[i], tonumber(seen[i + 1])
    if user ~= mine and counter <= until_ms + SHORTER * wide then
      local theirs, weight = line(pool, class, user, ORDERS[1].name), tier_of(user)
      local count = redis.call('ZCARD', theirs)
      local any = math.ceil(math.max(0, until_ms - ANY * wide - counter) * weight / mean_ms)
      local short = redis.call('ZCOUNT', theirs, '-inf', string.format('(%.17g', my_ms))
      short = math.min(short, math.ceil((until_ms + SHORTER * wide - counter) * weight / mean_ms))
      any, short = math.min(count, any), math.max(0, short - any)
      n, others = n + 1, others + any + short
      others_ms = others_ms + any * mean_ms + short * math.min(mean_ms, my_ms)
    end
  end
  local scale = n > 0 and math.max(1, (before - 1) / n) or 1
  return ahead + others * scale, work_ms + others_ms * scale
end

local function estimated()
  local ahead, work_ms = of_my_class()
  local above, above_ms, below, below_ms, below_share = 0, 0, 0, 0, 0
  for _, each in ipairs(CLASSES) do
    local jobs, ms = backlog_of(each)
    if SEATS[each] < SEATS[class] then
      above, above_ms = above + jobs, above_ms + ms
    elseif SEATS[each] > SEATS[class] and jobs > 0 then
      below, below_ms, below_share = below + jobs, below_ms + ms, below_share + shares[each]
    end
  end
  -- A class gets its share however much goes before it.
  if above_ms > 0 then
    local at_most = work_ms / shares[class] - work_ms
    local part = math.min(1, at_most / above_ms)
    ahead, work_ms = ahead + above * part, work_ms + above_ms * part
  end
  if below_ms > 0 then
    local part = math.min(1, work_ms * below_share / (1 - below_share) / below_ms)
    ahead, work_ms = ahead + below * part, work_ms + below_ms * part
  end
  return math.floor(ahead + 0.5), work_ms
end

local running = {}
for _, each in ipairs(redis.call('ZRANGE', key('leased', pool), 0, RUNNING - 1)) do
  local phase, remaining_ms = unpack(redis.call('HMGET', key('job', each), 'phase', 'remaining_ms'))
  if phase ~= 'store' then
    running[#running + 1] = tonumber(remaining_ms)
  end
end
local ahead, work_ms = 0, 0
if new or redis.call('ZSCORE', key('queued', pool), id) then
  if redis.call('ZCARD', key('queued', pool)) < FEW then
    ahead, work_ms = played_through(math.max(1, #running))
  else
    ahead, work_ms = estimated()
  end
end
return {ahead, math.floor(work_ms), unpack(running)}
