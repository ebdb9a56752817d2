-- What inference was served, and to whom.
CREATE TABLE receipts (
    request_id text   NOT NULL COLLATE "C",
    owner      text   NOT NULL COLLATE "C",
    at         bigint NOT NULL,
    record     text   NOT NULL,
    PRIMARY KEY (request_id, owner)
);
CREATE INDEX receipts_by_age ON receipts (at);

-- What each key used of each model on each day.
CREATE TABLE model_usage (
    day               bigint NOT NULL,
    owner             text   NOT NULL COLLATE "C",
    model             text   NOT NULL COLLATE "C",
    requests          bigint NOT NULL,
    prompt_tokens     bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    PRIMARY KEY (day, owner, model)
);
