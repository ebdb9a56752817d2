-- When an artifact was used last, which says when it may go; and since when a relay is removing it. What is known from before counts as
-- used now: nothing goes earlier than it would have.
ALTER TABLE artifacts ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE artifacts ADD COLUMN doomed_at INTEGER;
UPDATE artifacts SET used_at = unixepoch();
CREATE INDEX artifacts_by_use ON artifacts (used_at) WHERE doomed_at IS NULL;
CREATE INDEX artifacts_doomed ON artifacts (doomed_at) WHERE doomed_at IS NOT NULL;

-- How many bytes of artifacts each API key stored.
CREATE TABLE artifact_totals (
    owner TEXT    PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO artifact_totals (owner, bytes) SELECT owner, sum(size) FROM artifacts GROUP BY owner;
