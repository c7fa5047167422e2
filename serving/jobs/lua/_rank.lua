-- Prepended to the scripts that choose a job; touches no key. serving/plan/rank.py in Lua: what
-- each function means is said there, and a test holds the two equal to the last bit.
local SLO_FACTOR = 3
local SLACK_WEIGHT = 0.2
local LATE_FACTOR = 3
local LATE_UNTIL = 4
local AGING = 1 / 128
local PREEMPTIONS_MAX = 2

local function latest_start_ms(created_ms, total_ms, remaining_ms)
  return created_ms + SLO_FACTOR * total_ms - remaining_ms
end

-- Among equals, whoever has the least goes first.
local function urgency(created_ms, total_ms, remaining_ms, now_ms)
  local start_ms = latest_start_ms(created_ms, total_ms, remaining_ms)
  if now_ms <= start_ms then
    return remaining_ms + SLACK_WEIGHT * (start_ms - now_ms)
  end
  local waited_ms = now_ms - (created_ms + LATE_UNTIL * total_ms)
  if waited_ms < 0 then
    return LATE_FACTOR * remaining_ms
  end
  return remaining_ms - AGING * waited_ms
end

-- The orders the queue keeps, one sorted set each.
local ORDERS = {
  {name = 'work'},
  {name = 'age'},
}

-- The scores of a job that waits, one for each of ORDERS.
local function order_scores(created_ms, total_ms, remaining_ms)
  return {
    remaining_ms,
    math.floor(remaining_ms + AGING * (created_ms + LATE_UNTIL * total_ms)),
  }
end

-- a and b have a seat, an urgency and a seq; equals go by age.
local function goes_first(a, b)
  if a.seat ~= b.seat then
    return a.seat < b.seat
  elseif a.urgency ~= b.urgency then
    return a.urgency < b.urgency
  end
  return a.seq < b.seq
end

-- winner and victim are {created_ms, total_ms, remaining_ms, seat}.
local function worth_preempting(winner, victim, now_ms, free_ms, ran_ms, preemptions,
    quantum_ms, cost_ms)
  if preemptions >= PREEMPTIONS_MAX or ran_ms < quantum_ms then
    return false
  end
  if winner[4] ~= victim[4] then
    return winner[4] < victim[4] and free_ms > cost_ms
  end
  if not (urgency(winner[1], winner[2], winner[3], now_ms)
      < urgency(victim[1], victim[2], victim[3], now_ms)) then
    return false
  end
  local start_ms = latest_start_ms(winner[1], winner[2], winner[3])
  local saved = now_ms + cost_ms <= start_ms and start_ms < now_ms + free_ms
  local delay_ms = winner[3] + cost_ms
  local victim_start_ms = latest_start_ms(victim[1], victim[2], victim[3])
  local lost = now_ms <= victim_start_ms and victim_start_ms < now_ms + delay_ms
  return saved and not lost and free_ms > delay_ms
end
