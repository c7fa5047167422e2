-- Prepended to the scripts that give credits, settle holds and take credits back, behind _ledger.lua.
local HOLD_KEPT_MS = 7 * 24 * 3600 * 1000

-- Books what is left of a grant as expired, once it has.
local function expire(ref)
  local user, left, expires_ms =
    unpack(redis.call('HMGET', key('credit', ref), 'user', 'left', 'expires_ms'))
  left = tonumber(left)
  if left == 0 or tonumber(expires_ms) > now_ms() then
    return
  end
  redis.call('HINCRBY', key('credit', ref), 'expired', whole(left))
  post('expiry', user, {'of', ref}, {'grant:' .. ref, -left, 'cell:expired', left})
end

-- Adds to postings that an amount becomes available in a grant: what the user owes is paid first.
-- Returns the debt that is left.
local function give(postings, debt, user, ref, amount)
  local paid = math.min(debt, amount)
  for _, posting in ipairs({{'debt:' .. user, paid}, {'grant:' .. ref, amount - paid}}) do
    postings[#postings + 1], postings[#postings + 2] = posting[1], posting[2]
  end
  return debt - paid
end

-- Returns 'done' and the entry; or why not: 'reused' (the ref stands for something else), 'past' (it has
-- expired already), 'many' (the user has too many grants; never a purchase), 'total' (of the cell).
-- The same ref again grants nothing, and finds its entry.
local function grant(user, ref, amount, kind, priority, expires_ms, reason)
  local was = redis.call('HMGET', key('credit', ref), 'type', 'user', 'amount', 'kind', 'entry')
  if was[1] then
    local same = was[1] == 'grant' and was[2] == user and was[3] == whole(amount) and was[4] == kind
    return same and 'done' or 'reused', was[5]
  end
  local now = now_ms()
  local issued = -tonumber(redis.call('HGET', key('ledger', 'accounts'), 'issued') or 0)
  if expires_ms <= now then
    return 'past'
  elseif kind ~= 'purchase' and redis.call('ZCARD', key('grants', user)) >= GRANTS_MAX then
    return 'many'
  elseif issued + amount > AMOUNT_MAX then
    return 'total'
  end
  local postings = {'cell:issued', -amount}
  give(postings, debt_of(user), user, ref, amount)
  redis.call('HSET', key('credit', ref), 'type', 'grant', 'user', user, 'amount', whole(amount),
    'kind', kind, 'left', 0, 'expired', 0, 'reversed', 0, 'expires_ms', whole(expires_ms),
    'place', string.format('%03d %015d %015d %s', priority, expires_ms, now, ref))
  local entry = post('grant', user, {'ref', ref, 'kind', kind, 'priority', priority,
    'expires_ms', expires_ms < NEVER_MS and whole(expires_ms) or '', 'reason', reason}, postings)
  redis.call('HSET', key('credit', ref), 'entry', entry)
  return 'done', entry
end

-- Ends a hold as captured with an amount, or as released with 0; what is not taken goes back to where it
-- came from, the last used first. Returns its state and what was captured, as whoever was first left
-- them; nothing if there is no such hold; 'much' with what was held if the amount is more.
local function settle_hold(job, state, amount)
  local user, held, was, captured, parts =
    unpack(redis.call('HMGET', key('hold', job), 'user', 'amount', 'state', 'captured', 'parts'))
  if not user then
    return
  elseif was ~= 'held' then
    return was, captured
  end
  if amount > tonumber(held) then
    return 'much', held
  end
  local postings, back = {'hold:' .. job, -held, 'cell:earned', amount}, {}
  local to_take, owed = amount, debt_of(user)
  local debt = owed
  for ref, part in string.gmatch(parts, '(%S+) (%d+)') do
    local taken = math.min(to_take, tonumber(part))
    to_take = to_take - taken
    local returned = part - taken
    local paid = math.min(debt, returned)
    debt = debt - paid
    if returned > paid then
      postings[#postings + 1], postings[#postings + 2] = 'grant:' .. ref, returned - paid
      back[#back + 1] = ref
    end
  end
  postings[#postings + 1], postings[#postings + 2] = 'debt:' .. user, owed - debt
  redis.call('HSET', key('hold', job), 'state', state, 'captured', whole(amount))
  redis.call('HINCRBY', key('ledger', 'sums'), 'released', whole(held - amount))
  redis.call('PEXPIRE', key('hold', job), HOLD_KEPT_MS)
  post(state == 'captured' and 'capture' or 'release', user, {'of', job}, postings)
  for _, ref in ipairs(back) do
    expire(ref)
  end
  return state, whole(amount)
end

local function capture(job, amount)
  return settle_hold(job, 'captured', amount)
end

local function release(job)
  return settle_hold(job, 'released', 0)
end

-- Takes a grant back, or an amount of it: what is left of it, then what of it expired, and the rest as a
-- debt. Returns as reverse does.
local function reverse_grant(grant_ref, ref, amount, reason)
  local user, granted, left, expired, reversed = unpack(redis.call('HMGET', key('credit', grant_ref),
    'user', 'amount', 'left', 'expired', 'reversed'))
  local most = granted - reversed
  amount = amount or most
  if most == 0 then
    return 'reversed'
  elseif amount > most then
    return 'much', whole(most)
  end
  local from_left = math.min(tonumber(left), amount)
  local from_expired = math.min(tonumber(expired), amount - from_left)
  local owed = amount - from_left - from_expired
  local entry = post('reversal', user, {'ref', ref, 'of', grant_ref, 'reason', reason}, {
    'grant:' .. grant_ref, -from_left, 'cell:expired', -from_expired, 'debt:' .. user, -owed,
    'cell:issued', amount})
  redis.call('HINCRBY', key('credit', grant_ref), 'reversed', whole(amount))
  redis.call('HINCRBY', key('credit', grant_ref), 'expired', whole(-from_expired))
  redis.call('HSET', key('credit', ref), 'type', 'reversal', 'user', user, 'of', grant_ref,
    'amount', whole(amount), 'expired', whole(from_expired), 'restored', 0, 'entry', entry)
  return 'done', entry
end

-- Undoes a reversal, the whole of it; what had expired before has expired again. Returns as reverse does.
local function restore(reversal_ref, ref, amount, reason)
  local user, grant_ref, reversed, expired, restored = unpack(redis.call('HMGET',
    key('credit', reversal_ref), 'user', 'of', 'amount', 'expired', 'restored'))
  local most, gone = tonumber(reversed), tonumber(expired)
  if restored == '1' then
    return 'reversed'
  elseif amount and amount ~= most then
    return 'much', reversed
  end
  local postings = {'cell:issued', -most, 'cell:expired', gone}
  give(postings, debt_of(user), user, grant_ref, most - gone)
  local entry = post('restoration', user, {'ref', ref, 'of', reversal_ref, 'reason', reason}, postings)
  redis.call('HINCRBY', key('credit', grant_ref), 'reversed', whole(-most))
  redis.call('HINCRBY', key('credit', grant_ref), 'expired', whole(gone))
  redis.call('HSET', key('credit', reversal_ref), 'restored', 1)
  redis.call('HSET', key('credit', ref), 'type', 'restoration', 'user', user, 'of', reversal_ref,
    'amount', reversed, 'entry', entry)
  expire(grant_ref)
  return 'done', entry
end

-- A refund or a chargeback of a grant, or the end of one: of is the ref of the grant or of its reversal; an
-- amount of nil is all of it. Returns 'done' and the entry; or why not: 'reused', 'unknown' (there is no
-- such grant or reversal), 'reversed' (all of it, already), 'much' with the most it can be.
local function reverse(of, ref, amount, reason)
  local was = redis.call('HMGET', key('credit', ref), 'type', 'of', 'amount', 'entry')
  if was[1] then
    local same = was[2] == of and (not amount or was[3] == whole(amount))
    return same and 'done' or 'reused', was[4]
  end
  local kind = redis.call('HGET', key('credit', of), 'type')
  if kind == 'grant' then
    return reverse_grant(of, ref, amount, reason)
  elseif kind == 'reversal' then
    return restore(of, ref, amount, reason)
  end
  return 'unknown'
end

-- An adjustment downwards: takes from what a user may spend, in the order it is used. Each grant counts as
-- reversed by its part. Returns 'done' and the entry; or why not: 'reused', 'debt' or 'short' as hold does.
local function take(user, ref, amount, reason)
  local was = redis.call('HMGET', key('credit', ref), 'type', 'user', 'amount', 'entry')
  if was[1] then
    local same = was[1] == 'adjustment' and was[2] == user and was[3] == whole(amount)
    return same and 'done' or 'reused', was[4]
  end
  local debt = debt_of(user)
  if debt > 0 then
    return 'debt', whole(debt)
  end
  local parts, sum = burn(user, amount)
  if sum < amount then
    return 'short', whole(sum)
  end
  local postings = {'cell:issued', amount}
  for i = 1, #parts, 2 do
    postings[#postings + 1], postings[#postings + 2] = 'grant:' .. parts[i], -parts[i + 1]
  end
  local entry = post('adjustment', user, {'ref', ref, 'reason', reason}, postings)
  for i = 1, #parts, 2 do
    redis.call('HINCRBY', key('credit', parts[i]), 'reversed', whole(parts[i + 1]))
  end
  redis.call('HSET', key('credit', ref), 'type', 'adjustment', 'user', user, 'amount', whole(amount),
    'entry', entry)
  return 'done', entry
end
