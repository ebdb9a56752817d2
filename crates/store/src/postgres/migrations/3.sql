-- When each relay last said that it lives: the sessions of one that was killed ended then.
CREATE TABLE relays (
    relay_id text   PRIMARY KEY,
    alive_at bigint NOT NULL
);
