-- A copy of another ledger, beside ledger.sql: which of its entries each one is. Only copies are sealed.

CREATE TABLE IF NOT EXISTS copied (
  entry INTEGER PRIMARY KEY REFERENCES entries (id) DEFERRABLE INITIALLY DEFERRED,
  id TEXT NOT NULL UNIQUE
) STRICT;

CREATE TRIGGER IF NOT EXISTS only_copies BEFORE INSERT ON seals
WHEN NOT EXISTS (SELECT 1 FROM copied WHERE entry = NEW.entry)
BEGIN SELECT RAISE(ABORT, 'this file is a copy'); END;

CREATE TRIGGER IF NOT EXISTS copied_stay BEFORE UPDATE ON copied
BEGIN SELECT RAISE(ABORT, 'entries do not change'); END;
CREATE TRIGGER IF NOT EXISTS copied_last BEFORE DELETE ON copied
BEGIN SELECT RAISE(ABORT, 'entries do not go'); END;
