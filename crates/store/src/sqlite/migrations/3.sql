-- Old sessions are removed by when they ended.
CREATE INDEX sessions_by_age ON sessions (ended_at) WHERE ended_at IS NOT NULL;
