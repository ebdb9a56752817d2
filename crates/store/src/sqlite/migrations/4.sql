-- When each relay last said that it lives: the sessions of one that was killed ended then.
CREATE TABLE relays (
    relay_id TEXT    PRIMARY KEY,
    alive_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
