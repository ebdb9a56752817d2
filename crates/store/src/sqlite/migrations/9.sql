-- How long a key's requests for inference may take, where that is less than what the relay itself gives them.
ALTER TABLE api_keys ADD COLUMN inference_timeout_secs  INTEGER;
ALTER TABLE api_keys ADD COLUMN first_byte_timeout_secs INTEGER;
ALTER TABLE api_keys ADD COLUMN token_timeout_secs      INTEGER;
