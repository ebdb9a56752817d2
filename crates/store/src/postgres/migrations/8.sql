-- As before, but an attempt of a settled task that its provider takes once more, since the chain never bound it, lasts again.
CREATE OR REPLACE FUNCTION commit_task(
    p_task_id bytea, p_expected bigint, p_version bigint, p_status text, p_provider bytea, p_attempts bigint, p_next_due bigint,
    p_record text, p_node bytea, p_session_id text, p_dispatch_ms bigint,
    p_at bigint[], p_statuses text[], p_recorded text[], p_attempt bigint[], p_attempt_provider bytea[], p_outcome text[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_task      bigint;
    v_status    text;
    v_requester bytea;
    v_seq       bigint;
BEGIN
    PERFORM take_commit_lock();
    SELECT id, status, requester INTO v_task, v_status, v_requester
        FROM tasks WHERE task_id = p_task_id AND version = p_expected;
    IF v_task IS NULL THEN
        RETURN NULL;
    END IF;
    -- The right-hand sides see the old row: a host that is not named again stays with its attempt.
    UPDATE tasks SET version = p_version, status = p_status, provider = p_provider, attempts = p_attempts,
            next_due = p_next_due, record = p_record,
            node = coalesce(p_node, CASE WHEN provider IS NOT DISTINCT FROM p_provider AND attempts = p_attempts THEN node END)
        WHERE id = v_task;
    IF v_status <> p_status THEN
        UPDATE task_counts SET tasks = tasks - 1 WHERE status = v_status;
        INSERT INTO task_counts (status, tasks) VALUES (p_status, 1)
            ON CONFLICT (status) DO UPDATE SET tasks = task_counts.tasks + 1;
    END IF;
    SELECT coalesce(max(seq), 0) INTO v_seq FROM events;
    FOR i IN 1 .. array_length(p_recorded, 1) LOOP
        v_seq := v_seq + 1;
        INSERT INTO events (seq, task, requester, status, recorded)
            VALUES (v_seq, v_task, v_requester, p_statuses[i], p_recorded[i]);
        IF p_attempt[i] IS NOT NULL THEN
            UPDATE attempts SET ended_at = p_at[i], outcome = p_outcome[i]
                WHERE task = v_task AND ended_at IS NULL AND (attempt, provider) <> (p_attempt[i], p_attempt_provider[i]);
            INSERT INTO attempts (task, attempt, provider, node, session_id, accepted_at, dispatch_ms)
                VALUES (v_task, p_attempt[i], p_attempt_provider[i], p_node, p_session_id, p_at[i], p_dispatch_ms)
                ON CONFLICT (task, attempt, provider) DO UPDATE
                    SET node = coalesce(excluded.node, attempts.node), session_id = excluded.session_id,
                        accepted_at = excluded.accepted_at, dispatch_ms = excluded.dispatch_ms, ended_at = NULL, outcome = NULL
                    WHERE attempts.ended_at IS NOT NULL;
        ELSIF p_outcome[i] IS NOT NULL THEN
            UPDATE attempts SET ended_at = p_at[i], outcome = p_outcome[i] WHERE task = v_task AND ended_at IS NULL;
        END IF;
        UPDATE webhooks SET next_try = p_at[i] WHERE task = v_task AND next_try IS NULL AND dead_at IS NULL;
    END LOOP;
    RETURN v_seq;
END
$$;
