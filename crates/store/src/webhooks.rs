//! Webhooks: where a task's events are sent to, and how far that has come.
//!
//! A webhook walks its task's history in commit order, from the first event. It is one row with its place in that order, so that
//! events cost nothing more where nobody listens, and are neither skipped nor overtaken where one delivery fails.

use async_trait::async_trait;
use taskmarket::{TaskId, Timestamp};

use crate::{StoreError, StoredEvent};

/// Webhooks and their deliveries.
///
/// Every method fails with [`StoreError`] as its variants say. Where a delivery's outcome is told, `webhook` and `seq` are the
/// delivery's; what is told of any other than the webhook's next event changes nothing, and is answered with `false`.
#[async_trait]
pub trait Webhooks: Send + Sync {
    /// Keeps a webhook of a task. `false`, and nothing changes, if the task has one for the same URL, or is unknown.
    async fn add_webhook(&self, webhook: NewWebhook) -> Result<bool, StoreError>;

    /// The next event of each webhook to which it is due at `now`, most overdue first, `limit` at most. They are the caller's
    /// until `until`: nobody else gets them before.
    async fn take_deliveries(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError>;

    /// When a delivery is due next.
    async fn next_delivery(&self) -> Result<Option<Timestamp>, StoreError>;

    /// The event was delivered: the webhook goes on to the next one, at once.
    async fn delivery_done(&self, webhook: u64, seq: u64, at: Timestamp) -> Result<bool, StoreError>;

    /// The event was not delivered, and is to be tried again.
    async fn delivery_retry(&self, webhook: u64, seq: u64, retry: DeliveryRetry) -> Result<bool, StoreError>;

    /// The event was not delivered, and the webhook is given up.
    async fn delivery_dead(
        &self,
        webhook: u64,
        seq: u64,
        at: Timestamp,
        error: &str,
    ) -> Result<bool, StoreError>;

    /// A task's webhooks, in the order in which they were added.
    async fn deliveries(&self, task: TaskId) -> Result<Vec<StoredWebhook>, StoreError>;

    /// Sends all of a task's webhooks through its history again from the first event, those that were given up too. Answers how many.
    async fn replay(&self, task: TaskId, at: Timestamp) -> Result<u64, StoreError>;
}

/// A webhook to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWebhook {
    /// Whose events.
    pub task_id: TaskId,
    /// Where they are sent.
    pub url: String,
    /// Under which name the store's [`Secrets`](crate::Secrets) have the key that deliveries are signed with.
    pub secret_name: String,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A webhook as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredWebhook {
    /// Its number.
    pub id: u64,
    /// What was asked for.
    pub webhook: NewWebhook,
    /// The last event that was delivered, by its place in the commit sequence; 0 before the first.
    pub delivered: u64,
    /// When the next event is due, or due again; `None` while there is none, or when it was given up.
    pub next_try: Option<Timestamp>,
    /// Deliveries of the next event that failed.
    pub tries: u32,
    /// When the first of them failed.
    pub failing_since: Option<Timestamp>,
    /// When the webhook was given up.
    pub dead_at: Option<Timestamp>,
    /// Why the last delivery failed, until one goes well.
    pub error: Option<String>,
}

/// An event to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The webhook, as it is now.
    pub webhook: StoredWebhook,
    /// The event.
    pub event: StoredEvent,
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRetry {
    /// When it failed.
    pub at: Timestamp,
    /// When to try again.
    pub next_try: Timestamp,
    /// Why it failed.
    pub error: String,
}
