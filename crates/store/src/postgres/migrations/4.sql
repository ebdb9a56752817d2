-- When an artifact was used last, which says when it may go; and since when a relay is removing it. What is known from before counts as
-- used now: nothing goes earlier than it would have.
ALTER TABLE artifacts ADD COLUMN used_at bigint NOT NULL DEFAULT 0;
ALTER TABLE artifacts ADD COLUMN doomed_at bigint;
UPDATE artifacts SET used_at = extract(epoch FROM now())::bigint;
CREATE INDEX artifacts_by_use ON artifacts (used_at) WHERE doomed_at IS NULL;
CREATE INDEX artifacts_doomed ON artifacts (doomed_at) WHERE doomed_at IS NOT NULL;

-- How many bytes of artifacts each API key stored.
CREATE TABLE artifact_totals (
    owner text   COLLATE "C" PRIMARY KEY,
    bytes bigint NOT NULL
);

INSERT INTO artifact_totals (owner, bytes) SELECT owner, sum(size) FROM artifacts GROUP BY owner;

-- Keeps the metadata of an artifact whose bytes are stored. Answers 'new', 'known', 'doomed' or 'over_quota'.
CREATE FUNCTION add_artifact(p_digest bytea, p_size bigint, p_owner text, p_at bigint, p_quota bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v_doomed bigint;
    v_bytes  bigint;
BEGIN
    -- The lock on an owner's total keeps two of its uploads from passing the quota together.
    INSERT INTO artifact_totals (owner, bytes) VALUES (p_owner, 0) ON CONFLICT DO NOTHING;
    SELECT bytes INTO v_bytes FROM artifact_totals WHERE owner = p_owner FOR UPDATE;
    LOOP
        SELECT doomed_at INTO v_doomed FROM artifacts WHERE digest = p_digest FOR UPDATE;
        IF FOUND THEN
            IF v_doomed IS NOT NULL THEN
                RETURN 'doomed';
            END IF;
            UPDATE artifacts SET used_at = greatest(used_at, p_at) WHERE digest = p_digest;
            RETURN 'known';
        END IF;
        IF v_bytes + p_size > p_quota THEN
            RETURN 'over_quota';
        END IF;
        INSERT INTO artifacts (digest, size, owner, created_at, used_at)
            VALUES (p_digest, p_size, p_owner, p_at, p_at) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            UPDATE artifact_totals SET bytes = bytes + p_size WHERE owner = p_owner;
            RETURN 'new';
        END IF;
    END LOOP;
END
$$;

-- Removes the metadata of a doomed artifact, and takes it off its owner's total.
CREATE FUNCTION forget_artifact(p_digest bytea) RETURNS void LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM artifacts WHERE digest = p_digest AND doomed_at IS NOT NULL RETURNING owner, size)
    UPDATE artifact_totals SET bytes = bytes - gone.size FROM gone WHERE artifact_totals.owner = gone.owner
$$;
