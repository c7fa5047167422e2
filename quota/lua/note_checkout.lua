-- note_checkout(id, state, user, pack, credits, provider): it has come so far at least
note_checkout(unpack(ARGV))
