-- Prepended to every script of the queue, behind its keys: the limits of a user, in its cell.
--
-- <cell>:used:<user>          hash    day (when it began, ms), generations and gpu_ms: what that day's
--                                     allowance was used for; paid: GCRA, when the user's submissions will all
--                                     be paid for (ms)
local MINUTE_MS, DAY_MS = 60000, 86400000

-- The day that now is in: when it began, as text, and when it ends. days: midnights around now,
-- ascending; where they do not reach, days have 24 hours.
local function day_of(days, now)
  local began, last
  for midnight in string.gmatch(days, '%S+') do
    last = tonumber(midnight)
    if now < last and began then
      return began, last
    elseif now < last then
      break
    end
    began = midnight
  end
  local start = last + math.floor((now - last) / DAY_MS) * DAY_MS
  return string.format('%d', start), start + DAY_MS
end

-- Of what the user used: generations and device ms of this day (nil: no day is kept), when all
-- submissions are paid for, and whether anything of it is new.
local function used_of(user, day)
  local was, generations, gpu_ms, paid =
    unpack(redis.call('HMGET', key('used', user), 'day', 'generations', 'gpu_ms', 'paid'))
  if day and was == day then
    return tonumber(generations), tonumber(gpu_ms), tonumber(paid or nil), false
  end
  return 0, 0, tonumber(paid or nil), not was or day ~= nil
end

-- What limits_now found, as it has become; not if all this is dry.
local function keep_used(user, limits, dry)
  if dry == '1' then
    return
  end
  local used, paid = key('used', user), limits.rate and string.format('%.3f', limits.rate.paid)
  if limits.day then
    redis.call('HSET', used, 'day', limits.day, 'generations', string.format('%d', limits.generations),
      'gpu_ms', string.format('%d', limits.gpu_ms), unpack(paid and {'paid', paid} or {}))
  elseif paid then
    redis.call('HSET', used, 'paid', paid)
  else
    return
  end
  if limits.fresh then
    redis.call('PEXPIRE', used, 2 * DAY_MS)
  end
end

-- Some of it was not used after all. Nothing, once the day is over.
local function unuse(user, day, generations, gpu_ms)
  local was, had, had_ms =
    unpack(redis.call('HMGET', key('used', user), 'day', 'generations', 'gpu_ms'))
  if was == day then
    redis.call('HSET', key('used', user), 'generations', math.max(0, had - generations),
      'gpu_ms', math.max(0, had_ms - gpu_ms))
  end
end

-- GCRA: a minute's worth at once, and then one each time it has been paid for.
local function rate_of(paid, per_minute, now)
  return {now = now, period = MINUTE_MS / per_minute,
    paid = math.min(math.max(paid or now, now), now + MINUTE_MS)}
end

-- How many are left, and in how long all are there again (ms).
local function rate_left(rate)
  -- Half a millisecond: so that as many as said fit into an empty minute, whatever the rounding.
  return math.floor((rate.now + MINUTE_MS + 0.5 - rate.paid) / rate.period),
    math.ceil(rate.paid - rate.now)
end

-- Takes one, unless that is dry; or else in how long there will be one (ms).
local function take_rate(rate, dry)
  local over = rate.paid + rate.period - (rate.now + MINUTE_MS)
  if over > 0.5 then
    return math.ceil(over)
  end
  rate.paid = rate.paid + (dry == '1' and 0 or rate.period)
end
