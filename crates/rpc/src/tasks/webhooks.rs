//! Where a task's events are sent to.

use serde::{Deserialize, Serialize};
use taskmarket::Timestamp;

/// The answer of `GET /v1/tasks/{id}/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WebhookList {
    /// The task's webhooks, in the order in which they were added.
    pub webhooks: Vec<WebhookView>,
}

/// Where a task's events are sent to, and how far that has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WebhookView {
    /// Where to.
    pub url: String,
    /// How it stands.
    pub state: WebhookState,
    /// When it was added.
    pub created_at: Timestamp,
    /// The last event that was delivered, by its id; 0 before the first.
    pub delivered_event_id: u64,
    /// Deliveries of the next event that failed.
    pub tries: u32,
    /// When the next delivery is due.
    #[serde(default)]
    pub next_try: Option<Timestamp>,
    /// Since when deliveries of the next event fail.
    #[serde(default)]
    pub failing_since: Option<Timestamp>,
    /// When it was given up.
    #[serde(default)]
    pub dead_at: Option<Timestamp>,
    /// Why the last delivery failed, until one goes well.
    #[serde(default)]
    pub error: Option<String>,
}

/// How a webhook stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    /// Everything that happened was delivered.
    Idle,
    /// Deliveries are under way.
    Sending,
    /// The last delivery failed and is to be tried again.
    Retrying,
    /// It was given up; `POST /v1/tasks/{id}/webhooks/replay` begins again.
    Dead,
}

/// The answer of `POST /v1/tasks/{id}/webhooks/replay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WebhookReplay {
    /// How many webhooks begin again from the first event.
    pub webhooks: u64,
}
