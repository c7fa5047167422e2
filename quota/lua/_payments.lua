-- Prepended to the scripts of the shop, behind _settlement.lua: what providers said of payments.
--
-- What is kept of a payment only grows: the most that was refunded, how far each dispute has come, whether
-- it was ever paid. So events may come twice, in any order and days late, and all end in the same. The
-- provider has the last word: what the ledger says of a payment can be made again from its events.
--
-- <cell>:cell_id              string  tells this cell's payments from those of others on the same account
-- <cell>:checkout:<id>        hash    user, pack, credits, provider, state (as in CHECKOUTS), grant (a ref, once
--                                     paid); goes a while after it was last heard of
-- <cell>:payment:<provider>:<payment>
--                             hash    paid and currency: what was paid, in its minor unit; user, pack (once it
--                                     was said that it is paid). Its grant is <provider>:<payment>
--                                     refunded:<currency>   the most that was refunded
--                                     dispute:<id>          how far it has come (as in DISPUTES), and when (s)
--                                     disputed:<id>:<currency>  the most that is in dispute
--                                     event:<id>            when it came (ms), and its type
--                                     Goes after a while, if there is no grant.
local CHECKOUT_KEPT_MS, UNPAID_KEPT_MS = 30 * 24 * 3600 * 1000, 90 * 24 * 3600 * 1000
local CHECKOUTS = {open = 0, processing = 1, expired = 2, failed = 3, paid = 4}
local DISPUTES = {inquiry = 0, open = 1, won = 2, lost = 3}

-- A checkout that has come so far at least. Whose it is was said when it was opened, and is said by each
-- event, in the same words.
local function note_checkout(id, state, user, pack, credits, provider)
  local name = key('checkout', id)
  local was = redis.call('HGET', name, 'state')
  redis.call('HSET', name, 'user', user, 'pack', pack, 'credits', credits, 'provider', provider,
    'state', was and CHECKOUTS[was] > CHECKOUTS[state] and was or state)
  redis.call('PEXPIRE', name, CHECKOUT_KEPT_MS)
end

local function note_most(name, field, amount)
  if tonumber(amount) >= tonumber(redis.call('HGET', name, field) or 0) then
    redis.call('HSET', name, field, amount)
  end
end

-- Of two states of a dispute, the larger stays: of those that closed it, the later one.
local function dispute_rank(state)
  local phase, at_s = string.match(state, '^(%a+) (%d+)$')
  local rank = DISPUTES[phase]
  return rank < DISPUTES.won and rank or rank + 4 * at_s
end

local function note_dispute(name, id, state)
  local was = redis.call('HGET', name, 'dispute:' .. id)
  if not was or dispute_rank(state) > dispute_rank(was) then
    redis.call('HSET', name, 'dispute:' .. id, state)
  end
end

-- How much of a payment is not ours by what is known of it, of what was paid: what was refunded, and what is
-- in dispute or was lost. An amount in another currency counts as all of it, as does any where nobody knows
-- what was paid.
local function gone_of_payment(facts, paid, currency)
  local sum = 0
  for field, value in pairs(facts) do
    local refunded_in = string.match(field, '^refunded:(.*)$')
    local dispute, disputed_in = string.match(field, '^disputed:(.*):(.*)$')
    local phase = dispute and string.match(facts['dispute:' .. dispute], '%a+')
    if refunded_in or phase == 'open' or phase == 'lost' then
      local known = (refunded_in or disputed_in) == currency
      sum = sum + (known and math.min(tonumber(value), paid) or tonumber(value) > 0 and paid or 0)
    end
  end
  return math.min(sum, paid)
end

-- floor(amount * part / all), for part <= all: the product would not fit into a double, so bit by bit.
local function share_of(amount, part, all)
  if all == 0 or part == all then
    return part == 0 and 0 or amount
  end
  local quotient, rest, each, over = 0, 0, math.floor(amount / all), amount % all
  for bit = 52, 0, -1 do
    local set = math.floor(part / 2 ^ bit) % 2
    rest = 2 * rest + set * over
    local carry = math.floor(rest / all)
    quotient, rest = 2 * quotient + set * each + carry, rest - carry * all
  end
  return quotient
end

-- Takes back of a payment's grant what is gone of the payment, no less and no more: returns what was taken
-- before if it is less by now. Whatever somebody else took back of the grant stays. The entries have the refs
-- <grant>:1, <grant>:2, …; adds their ids, and returns how much more is taken than before.
local function follow_payment(name, grant_ref, reason, entries)
  local facts, flat = {}, redis.call('HGETALL', name)
  for i = 1, #flat, 2 do
    facts[flat[i]] = flat[i + 1]
  end
  local last, stand, taken = 0, {}, 0
  while true do
    local ref = grant_ref .. ':' .. last + 1
    local kind, of, amount, restored =
      unpack(redis.call('HMGET', key('credit', ref), 'type', 'of', 'amount', 'restored'))
    if not kind then
      break
    end
    last = last + 1
    if kind == 'reversal' and of == grant_ref and restored == '0' then
      stand[#stand + 1], taken = {ref = ref, amount = amount}, taken + amount
    end
  end
  local granted, reversed = unpack(redis.call('HMGET', key('credit', grant_ref), 'amount', 'reversed'))
  local paid, before = tonumber(facts.paid or 1), taken
  local target = math.min(share_of(tonumber(granted), gone_of_payment(facts, paid, facts.currency), paid),
    granted - (reversed - taken))

  local function move(of, amount)
    last = last + 1
    local _, entry = reverse(of, grant_ref .. ':' .. last, amount, reason)
    entries[#entries + 1] = entry
  end

  -- A reversal is undone whole, the newest first.
  while taken > target do
    local newest = table.remove(stand)
    move(newest.ref)
    taken = taken - newest.amount
  end
  if taken < target then
    move(grant_ref, target - taken)
  end
  return target - before
end
