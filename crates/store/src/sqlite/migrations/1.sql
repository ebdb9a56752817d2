-- Times are unix seconds; addresses, ids and hashes are bytes; statuses are the words of the API.

-- Rows are in the order of publication, so that an insert appends; the index of task_id alone is random.
CREATE TABLE tasks (
    id         INTEGER PRIMARY KEY,
    task_id    BLOB    NOT NULL UNIQUE,
    version    INTEGER NOT NULL,
    status     TEXT    NOT NULL,
    requester  BLOB    NOT NULL,
    provider   BLOB,
    attempts   INTEGER NOT NULL,
    node       BLOB,
    gpu_type   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    next_due   INTEGER,
    owner      TEXT    NOT NULL,
    record     TEXT    NOT NULL
) STRICT;

-- Each listing reads one of these from its end, once for each status that it wants, and merges.
CREATE INDEX tasks_by_status ON tasks (status, created_at);
CREATE INDEX tasks_by_requester ON tasks (requester, status, created_at);
CREATE INDEX tasks_by_provider ON tasks (provider, status, created_at) WHERE provider IS NOT NULL;
CREATE INDEX tasks_by_gpu_type ON tasks (gpu_type, status, created_at);
CREATE INDEX tasks_by_next_due ON tasks (next_due) WHERE next_due IS NOT NULL;

-- The commit sequence of the whole store.
CREATE TABLE events (
    seq       INTEGER PRIMARY KEY,
    task      INTEGER NOT NULL REFERENCES tasks (id),
    requester BLOB    NOT NULL,
    status    TEXT    NOT NULL,
    recorded  TEXT    NOT NULL
) STRICT;

CREATE INDEX events_by_task ON events (task);
CREATE INDEX events_by_requester ON events (requester);

CREATE TABLE task_counts (
    status TEXT    PRIMARY KEY,
    tasks  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id           INTEGER PRIMARY KEY,
    session_id   TEXT    NOT NULL UNIQUE,
    provider     BLOB    NOT NULL,
    node_id      BLOB    NOT NULL,
    relay_id     TEXT    NOT NULL,
    generation   INTEGER NOT NULL,
    metadata     TEXT    NOT NULL,
    connected_at INTEGER NOT NULL,
    ended_at     INTEGER,
    reason       TEXT
) STRICT;

CREATE INDEX sessions_by_provider ON sessions (provider);
CREATE UNIQUE INDEX sessions_by_node ON sessions (provider, node_id, generation);
CREATE INDEX sessions_open ON sessions (relay_id) WHERE ended_at IS NULL;

CREATE TABLE node_statuses (
    provider  BLOB    NOT NULL,
    node_id   BLOB    NOT NULL,
    status    TEXT    NOT NULL,
    issued_at INTEGER NOT NULL,
    PRIMARY KEY (provider, node_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE artifacts (
    digest     BLOB    PRIMARY KEY,
    size       INTEGER NOT NULL,
    owner      TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
