//! API keys and the use that is made of them: what the relay's operators say and see.

use serde::{Deserialize, Serialize};
use taskmarket::Timestamp;

/// The body of `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// What its holder is called; 1 to 128 bytes.
    pub name: String,
    /// What it may be used for: `tasks:write`, `tasks:read`, `inference`, `admin`; at least one of them. `admin` reaches everywhere.
    pub scopes: Vec<String>,
    /// From when it is no longer good; absent for never.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Requests that it may make in a minute; absent for no limit.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens of inference that it may use in a minute; absent for no limit.
    #[serde(default)]
    pub tokens_per_minute: Option<u32>,
    /// How long its requests for inference may take in all, in seconds; absent for the relay's own deadline, which bounds it.
    #[serde(default)]
    pub inference_timeout_secs: Option<u32>,
    /// How long a host may take until the first byte of a stream, in seconds; absent for the relay's own deadline, which bounds it.
    #[serde(default)]
    pub first_byte_timeout_secs: Option<u32>,
    /// How long a host may pause within a stream, in seconds; absent for the relay's own deadline, which bounds it.
    #[serde(default)]
    pub token_timeout_secs: Option<u32>,
}

/// The answer of `POST /v1/keys`: the only place where a key's text is seen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreatedKey {
    /// The key itself, to be sent as `Authorization: Bearer …`; `null` where the request was sent again with its idempotency key.
    pub key: Option<String>,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: KeyView,
}

/// A key must not reach a log.
impl std::fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedKey").field("view", &self.view).finish_non_exhaustive()
    }
}

/// An API key, without its text. The answer of `GET` and `DELETE /v1/keys/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeyView {
    /// Its id: the first 16 hex digits of the key's SHA-256.
    pub id: String,
    /// What its holder is called.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// Requests that it may make in a minute.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens of inference that it may use in a minute.
    #[serde(default)]
    pub tokens_per_minute: Option<u32>,
    /// How long its requests for inference may take in all, in seconds.
    #[serde(default)]
    pub inference_timeout_secs: Option<u32>,
    /// How long a host may take until the first byte of a stream, in seconds.
    #[serde(default)]
    pub first_byte_timeout_secs: Option<u32>,
    /// How long a host may pause within a stream, in seconds.
    #[serde(default)]
    pub token_timeout_secs: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when it is no longer good.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
}

/// The answer of `GET /v1/keys`: keys in the order of their ids, those of the command line not among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KeyList {
    /// The keys.
    pub keys: Vec<KeyView>,
    /// Leads to the next page; `null` at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// The query of `GET /v1/usage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    /// The first day, in UTC, such as `2026-01-31`: 29 days before `to` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The last day: today unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Of this key only. Who is no admin sees their own only, whether they say it or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Rows on the page: 100 unless said otherwise, 1,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The answer of `GET /v1/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UsagePage {
    /// By day and key, days without requests left out.
    pub usage: Vec<UsageView>,
    /// Leads to the next page; `null` at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// What a key was used for on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UsageView {
    /// The day, in UTC.
    pub day: String,
    /// Which key.
    pub key_id: String,
    /// Requests that were let through.
    pub requests: u64,
    /// The models that served some of them.
    #[serde(default)]
    pub models: Vec<ModelUsage>,
}

/// What a key used of a model on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelUsage {
    /// Which model.
    pub model: String,
    /// Requests that it served.
    pub requests: u64,
    /// Tokens in.
    pub prompt_tokens: u64,
    /// Tokens out.
    pub completion_tokens: u64,
}
