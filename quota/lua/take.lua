-- take(user, ref, amount, reason) -> {outcome, entry or amount}
local user, ref, amount, reason = unpack(ARGV)
local outcome, told = take(user, ref, amount_of(amount), reason)
return {outcome, told}
