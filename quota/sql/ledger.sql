-- The ledger in SQLite. What the constraints allow is a ledger: entries are complete when they are
-- sealed, cannot be committed before they are, cannot be sealed unless they add up to zero, and never
-- change; no account but a debt and what was issued is below zero; a hold is settled once.

CREATE TABLE IF NOT EXISTS entries (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  type TEXT NOT NULL CHECK (type IN ('grant', 'hold', 'capture', 'release', 'expiry', 'reversal',
                                     'restoration', 'adjustment')),
  user TEXT NOT NULL CHECK (user <> ''),
  at_ms INTEGER NOT NULL,
  ref TEXT UNIQUE CHECK (ref <> ''),
  of TEXT,
  kind TEXT CHECK (kind IN ('promotion', 'adjustment', 'purchase')),
  priority INTEGER CHECK (priority BETWEEN 0 AND 999),
  expires_ms INTEGER,
  reason TEXT NOT NULL,
  sealed INTEGER NOT NULL REFERENCES seals (entry) DEFERRABLE INITIALLY DEFERRED,
  CHECK (sealed = id),
  CHECK ((type IN ('grant', 'reversal', 'restoration', 'adjustment')) = (ref IS NOT NULL)),
  CHECK ((type IN ('grant', 'adjustment')) = (of IS NULL)),
  CHECK ((type = 'grant') = (kind IS NOT NULL AND priority IS NOT NULL))
) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_user ON entries (user, id);
CREATE INDEX IF NOT EXISTS entries_by_of ON entries (of);
CREATE UNIQUE INDEX IF NOT EXISTS held_once ON entries (of) WHERE type = 'hold';
CREATE UNIQUE INDEX IF NOT EXISTS settled_once ON entries (of) WHERE type IN ('capture', 'release');
CREATE UNIQUE INDEX IF NOT EXISTS restored_once ON entries (of) WHERE type = 'restoration';

CREATE TABLE IF NOT EXISTS postings (
  entry INTEGER NOT NULL REFERENCES entries (id),
  account TEXT NOT NULL REFERENCES accounts (account) DEFERRABLE INITIALLY DEFERRED,
  amount INTEGER NOT NULL CHECK (amount <> 0 AND amount BETWEEN -9007199254740991 AND 9007199254740991),
  PRIMARY KEY (entry, account)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS postings_by_account ON postings (account, entry);

CREATE TABLE IF NOT EXISTS accounts (
  account TEXT PRIMARY KEY CHECK (account IN ('cell:issued', 'cell:earned', 'cell:expired')
                                  OR account GLOB 'grant:?*' OR account GLOB 'hold:?*'
                                  OR account GLOB 'debt:?*'),
  balance INTEGER NOT NULL,
  CHECK (CASE WHEN account = 'cell:issued' OR account GLOB 'debt:*' THEN balance <= 0
              ELSE balance >= 0 END)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS seals (entry INTEGER PRIMARY KEY REFERENCES entries (id)) STRICT;

CREATE TRIGGER IF NOT EXISTS sealed_entries_add_up BEFORE INSERT ON seals
WHEN (SELECT coalesce(sum(amount), 1) FROM postings WHERE entry = NEW.entry) <> 0
BEGIN SELECT RAISE(ABORT, 'the postings do not add up to zero'); END;

CREATE TRIGGER IF NOT EXISTS sealed_entries_are_complete BEFORE INSERT ON postings
WHEN EXISTS (SELECT 1 FROM seals WHERE entry = NEW.entry)
BEGIN SELECT RAISE(ABORT, 'the entry is sealed'); END;

CREATE TRIGGER IF NOT EXISTS balances_follow AFTER INSERT ON postings
BEGIN
  INSERT INTO accounts VALUES (NEW.account, 0) ON CONFLICT DO NOTHING;
  UPDATE accounts SET balance = balance + NEW.amount WHERE account = NEW.account;
END;

CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries do not change'); END;
CREATE TRIGGER IF NOT EXISTS entries_last BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries do not go'); END;
CREATE TRIGGER IF NOT EXISTS postings_stay BEFORE UPDATE ON postings
BEGIN SELECT RAISE(ABORT, 'postings do not change'); END;
CREATE TRIGGER IF NOT EXISTS postings_last BEFORE DELETE ON postings
BEGIN SELECT RAISE(ABORT, 'postings do not go'); END;
CREATE TRIGGER IF NOT EXISTS seals_stay BEFORE UPDATE ON seals
BEGIN SELECT RAISE(ABORT, 'seals do not change'); END;
CREATE TRIGGER IF NOT EXISTS seals_last BEFORE DELETE ON seals
BEGIN SELECT RAISE(ABORT, 'seals do not go'); END;
