-- grant(user, ref, amount, kind, priority, expires_ms, reason) -> {outcome, entry or ''}; '' is none
local user, ref, amount, kind, priority, expires_ms, reason = unpack(ARGV)
local outcome, entry = grant(user, ref, amount_of(amount), kind, tonumber(priority),
  tonumber(expires_ms) or NEVER_MS, reason)
return {outcome, entry or ''}
