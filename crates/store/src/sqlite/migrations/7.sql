-- Up to which block the chain of each escrow contract was followed.
CREATE TABLE chain_cursors (
    chain_id   INTEGER NOT NULL,
    contract   BLOB    NOT NULL,
    block      INTEGER NOT NULL,
    block_hash BLOB    NOT NULL,
    block_time INTEGER NOT NULL,
    PRIMARY KEY (chain_id, contract)
) STRICT, WITHOUT ROWID;

-- What it said, until the histories of the tasks have it.
CREATE TABLE chain_facts (
    task_id    BLOB    NOT NULL,
    block      INTEGER NOT NULL,
    log_index  INTEGER NOT NULL,
    block_time INTEGER NOT NULL,
    fact       TEXT    NOT NULL,
    PRIMARY KEY (task_id, block, log_index)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_facts_by_age ON chain_facts (block_time);
