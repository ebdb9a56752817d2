-- What inference was served, and to whom.
CREATE TABLE receipts (
    request_id TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    record     TEXT    NOT NULL,
    PRIMARY KEY (request_id, owner)
) STRICT, WITHOUT ROWID;
CREATE INDEX receipts_by_age ON receipts (at);

-- What each key used of each model on each day.
CREATE TABLE model_usage (
    day               INTEGER NOT NULL,
    owner             TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    requests          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, owner, model)
) STRICT, WITHOUT ROWID;
