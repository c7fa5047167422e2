-- hold(user, job, amount) -> {'held'}, or {'reused' | 'settled' | 'debt' | 'short', what the user owes or has}
local user, job, amount = unpack(ARGV)
local held, why, much = hold(user, job, amount_of(amount))
return held and {'held'} or {why, whole(much)}
