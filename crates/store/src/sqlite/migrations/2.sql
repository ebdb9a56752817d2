-- API keys and their use, kept answers, webhooks, attempts.

CREATE TABLE api_keys (
    id                  TEXT    PRIMARY KEY,
    hash                BLOB    NOT NULL,
    name                TEXT    NOT NULL,
    scopes              TEXT    NOT NULL,
    requests_per_minute INTEGER,
    tokens_per_minute   INTEGER,
    created_at          INTEGER NOT NULL,
    expires_at          INTEGER,
    revoked_at          INTEGER
) STRICT, WITHOUT ROWID;

-- Days are counted from 1970-01-01.
CREATE TABLE usage (
    day      INTEGER NOT NULL,
    owner    TEXT    NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (day, owner)
) STRICT, WITHOUT ROWID;

-- Without a status there is no answer yet.
CREATE TABLE idempotency (
    owner        TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    request      BLOB    NOT NULL,
    began_at     INTEGER NOT NULL,
    status       INTEGER,
    content_type TEXT,
    body         BLOB,
    PRIMARY KEY (owner, key)
) STRICT;

CREATE INDEX idempotency_by_age ON idempotency (began_at);

-- A webhook without a time of its next try waits for its task's next event, or is dead.
CREATE TABLE webhooks (
    id            INTEGER PRIMARY KEY,
    task          INTEGER NOT NULL REFERENCES tasks (id),
    url           TEXT    NOT NULL,
    secret_name   TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    delivered     INTEGER NOT NULL,
    next_try      INTEGER,
    tries         INTEGER NOT NULL,
    failing_since INTEGER,
    dead_at       INTEGER,
    error         TEXT,
    UNIQUE (task, url)
) STRICT;

CREATE INDEX webhooks_by_next_try ON webhooks (next_try) WHERE next_try IS NOT NULL;

CREATE TABLE attempts (
    task        INTEGER NOT NULL REFERENCES tasks (id),
    attempt     INTEGER NOT NULL,
    provider    BLOB    NOT NULL,
    node        BLOB,
    session_id  TEXT,
    accepted_at INTEGER NOT NULL,
    dispatch_ms INTEGER,
    ended_at    INTEGER,
    outcome     TEXT,
    PRIMARY KEY (task, attempt, provider)
) STRICT, WITHOUT ROWID;

-- Reports ask for what had not ended before a time.
CREATE INDEX attempts_by_end ON attempts (provider, ended_at);
CREATE INDEX sessions_by_end ON sessions (provider, ended_at);
