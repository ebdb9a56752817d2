-- Up to which block the chain of each escrow contract was followed.
CREATE TABLE chain_cursors (
    chain_id   bigint NOT NULL,
    contract   bytea   NOT NULL,
    block      bigint NOT NULL,
    block_hash bytea   NOT NULL,
    block_time bigint NOT NULL,
    PRIMARY KEY (chain_id, contract)
);

-- What it said, until the histories of the tasks have it.
CREATE TABLE chain_facts (
    task_id    bytea   NOT NULL,
    block      bigint NOT NULL,
    log_index  bigint NOT NULL,
    block_time bigint NOT NULL,
    fact       text   NOT NULL,
    PRIMARY KEY (task_id, block, log_index)
);
CREATE INDEX chain_facts_by_age ON chain_facts (block_time);
