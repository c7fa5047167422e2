-- Prepended to the scripts that choose a job, or say which would be chosen.
local HEADS = 32
local OVERDUE = 1e15
-- What a lease wants of each place at the head of a line: created, total and left (ms), and how long the place is,
-- which comes behind. They are for struct: text would have to be matched, and tonumber reads it twice.
local HEAD = '<dddI2'

-- The classes of this pool some of whose tenants may be leased a job.
local function waiting_classes(pool)
  local waiting = {}
  for _, class in ipairs(CLASSES) do
    waiting[class] = redis.call('EXISTS', key('ready', pool, class)) == 1 or nil
  end
  return waiting
end

-- Tenants one of whom goes first: those with the lowest counters, within a window. Of the counters only the
-- least is read, since Redis writes each with 17 digits; it and what else is fair here comes with them. The first
-- is overdue when too much went to the others: then it is the only one.
local function candidates(pool, class)
  local ready = key('ready', pool, class)
  local least = tonumber(redis.call('ZRANGE', ready, '0', '0', 'WITHSCORES')[2] or nil)
  if not least then
    return {}
  end
  local reached, width, passed = unpack(redis.call('HMGET', key('fair', pool), class .. ':reached',
    class .. ':window', class .. ':passed'))
  local fair = {least = least, reached = tonumber(reached or 0), window = tonumber(width or 0),
    passed = tonumber(passed or 0)}
  return redis.call('ZRANGEBYSCORE', ready, '-inf', least + fair.window, 'LIMIT', '0', CANDIDATES), fair
end

-- A job as rank sees it, and more of its fields; nothing if there is none.
local function contender(id, now, remaining_ms, seat, ...)
  local got = redis.call('HMGET', key('job', id), 'created_ms', 'est_device_ms', 'left_device_ms',
    'seq', 'seat', ...)
  if not got[1] then
    return
  end
  local created_ms, total_ms = tonumber(got[1]), tonumber(got[2])
  remaining_ms, seat = remaining_ms or tonumber(got[3] or total_ms), seat or tonumber(got[5] or 0)
  local job = {id = id, seq = tonumber(got[4]), seat = seat,
    contender = {created_ms, total_ms, remaining_ms, seat},
    urgency = urgency(created_ms, total_ms, remaining_ms, now)}
  return job, unpack(got, 6)
end

-- As rank sees it.
local function waiting_job(place, tenant, class, now)
  local seq, created, total, left, attempts, rows, shape, id_at =
    string.match(place, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) ()')
  local created_ms, total_ms, left_ms = tonumber(created), tonumber(total), tonumber(left)
  return {id = string.sub(place, id_at), seq = tonumber(seq), seat = SEATS[class], class = class, tenant = tenant,
    place = place, attempts = tonumber(attempts), rows = tonumber(rows), shape = shape,
    contender = {created_ms, total_ms, left_ms, SEATS[class]},
    urgency = urgency(created_ms, total_ms, left_ms, now)}
end

-- What is at the heads of a tenant's lines: for each place a HEAD, and the place.
local function heads_of(pool, class, user, most)
  local seen, heads = {}, {}
  for _, order in ipairs(ORDERS) do
    for _, place in ipairs(redis.call('ZRANGE', line(pool, class, user, order.name), '0', most - 1)) do
      if not seen[place] then
        local created, total, left = string.match(place, '^%d+ (%d+) (%d+) (%d+)')
        seen[place], heads[#heads + 1] = true, struct.pack(HEAD, created, total, left, #place) .. place
      end
    end
  end
  return table.concat(heads)
end

-- The same of each of these users. Where many wait, lease after lease looks at the same ones: what was found
-- is kept until a job of theirs comes there or goes.
local function all_heads(pool, class, users)
  local most = math.max(1, math.floor(HEADS / (#users) ^ 1.25))
  local heads, names = {}, {}
  if most == 1 then
    for i, user in ipairs(users) do
      names[i] = heads_key(pool, class, user)
    end
    heads = redis.call('MGET', unpack(names))
  end
  for i, user in ipairs(users) do
    if not heads[i] then
      heads[i] = heads_of(pool, class, user, most)
      if most == 1 then
        redis.call('SET', names[i], heads[i])
      end
    end
  end
  return heads
end

-- Gives the first few jobs of a class that wait, one at each call, whoever goes first first. Of each tenant
-- only the heads of its lines are looked at, the fewer the more tenants there are (HEADS of one, the first
-- of CANDIDATES). Of each only its rank is worked out before its turn comes: all that a lease makes beside
-- is garbage, whose collection other leases wait for.
local function each_waiting(pool, class, now)
  local users, fair = candidates(pool, class)
  local overdue = fair and is_overdue(fair.passed, fair.window)
  local heads = all_heads(pool, class, users)
  -- By number: the rank, whose, and where in the tenant's heads the place begins and ends.
  local ranks, owners, starts, ends = {}, {}, {}, {}
  for i = 1, #users do
    local text, at = heads[i], 1
    while at <= #text do
      local created_ms, total_ms, left_ms, length, start = struct.unpack(HEAD, text, at)
      local rank = urgency(created_ms, total_ms, left_ms, now)
      local n = #ranks + 1
      ranks[n], owners[n] = i == 1 and overdue and rank - OVERDUE or rank, i
      starts[n], ends[n] = start, start + length - 1
      at = start + length
    end
  end
  local function place_at(n)
    return string.sub(heads[owners[n]], starts[n], ends[n])
  end
  return function()
    local first
    for n, rank in ipairs(ranks) do
      local least = first and ranks[first] or math.huge
      -- A place begins with the seq.
      if rank < least or (rank == least and rank < math.huge and place_at(n) < place_at(first)) then
        first = n
      end
    end
    if first then
      local i = owners[first]
      local place = place_at(first)
      ranks[first] = math.huge
      local tenant = {user = users[i], is_least = i == 1, fair = fair}
      return waiting_job(place, tenant, class, now)
    end
  end
end
