-- apply_event(provider, event) -> {outcome, entry …}. event: JSON, all values text: id, type; where it says so,
-- payment; checkout and state; user, pack, credits, days; paid and currency; refunded and refunded_in, charged
-- and charged_in; dispute, dispute_state, disputed and disputed_in. outcome: granted, reversed, restored, noted,
-- duplicate; or why the ledger cannot book the grant, as grant says it, and then nothing is done.
local provider, event = ARGV[1], cjson.decode(ARGV[2])
local name = key('payment', provider, event.payment or '')
if event.payment and redis.call('HEXISTS', name, 'event:' .. event.id) == 1 then
  return {'duplicate'}
end
local outcome, entries = 'noted', {}
local grant_ref = provider .. ':' .. (event.payment or '')
-- What somebody granted by hand under the payment's ref is its grant, too.
local kind, user = unpack(redis.call('HMGET', key('credit', grant_ref), 'type', 'user'))
if event.paid and (kind ~= 'grant' or user ~= event.user) then
  local expires_ms = event.days and now_ms() + event.days * 24 * 3600 * 1000 or NEVER_MS
  local granted, entry = grant(event.user, grant_ref, amount_of(event.credits), 'purchase',
    tonumber(event.priority), expires_ms, 'bought ' .. event.pack)
  if granted ~= 'done' then
    return {granted}
  end
  kind, outcome, entries[1] = 'grant', 'granted', entry
end
if event.payment then
  if event.paid then
    redis.call('HSET', name, 'paid', event.paid, 'currency', event.currency, 'user', event.user,
      'pack', event.pack)
  elseif event.charged and redis.call('HEXISTS', name, 'paid') == 0 then
    redis.call('HSET', name, 'paid', event.charged, 'currency', event.charged_in)
  end
  if event.refunded then
    note_most(name, 'refunded:' .. event.refunded_in, event.refunded)
  end
  if event.dispute then
    note_dispute(name, event.dispute, event.dispute_state)
    note_most(name, 'disputed:' .. event.dispute .. ':' .. event.disputed_in, event.disputed)
  end
  if kind == 'grant' then
    local change = follow_payment(name, grant_ref, event.type .. ' ' .. event.id, entries)
    if outcome == 'noted' and change ~= 0 then
      outcome = change > 0 and 'reversed' or 'restored'
    end
  end
  redis.call('HSET', name, 'event:' .. event.id, whole(now_ms()) .. ' ' .. event.type)
  if kind == 'grant' then
    redis.call('PERSIST', name)
  else
    redis.call('PEXPIRE', name, UNPAID_KEPT_MS)
  end
end
if event.checkout then
  note_checkout(event.checkout, event.state, event.user, event.pack, event.credits, provider)
  if kind == 'grant' then
    redis.call('HSET', key('checkout', event.checkout), 'grant', grant_ref)
  end
end
return {outcome, unpack(entries)}
