-- The headers of a kept answer, beside its media type: a list of names and values in JSON.
ALTER TABLE idempotency ADD COLUMN headers text;
