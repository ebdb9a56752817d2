-- Old sessions are removed by when they ended.
CREATE INDEX sessions_by_age ON sessions (ended_at) WHERE ended_at IS NOT NULL;

-- Tasks are published many at a time, by one statement of the writer's.
DROP FUNCTION publish_task;

-- Only functions and statements of the store append events, to tasks that they have just found or made, and no task is ever removed: a
-- check of each event would cost as much as the event.
ALTER TABLE events DROP CONSTRAINT events_task_fkey;
