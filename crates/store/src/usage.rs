//! What API keys are used for, in numbers: how many requests on which day.

use async_trait::async_trait;

use crate::{KeyId, StoreError};

/// The use that is made of API keys.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Usages: Send + Sync {
    /// Adds to what is counted of each key on each day.
    async fn add_usage(&self, usage: Vec<Usage>) -> Result<(), StoreError>;

    /// What was counted, in the order of days and keys, `limit` at most, from the one after `after`.
    async fn usage(
        &self,
        filter: UsageFilter,
        after: Option<(u64, KeyId)>,
        limit: usize,
    ) -> Result<Vec<Usage>, StoreError>;
}

/// What was counted of a key on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Which key.
    pub owner: KeyId,
    /// Which day, counted in UTC from 1970-01-01.
    pub day: u64,
    /// Its requests.
    pub requests: u64,
}

/// Which usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageFilter {
    /// Of this key only.
    pub owner: Option<KeyId>,
    /// The first day.
    pub from: u64,
    /// The last day.
    pub to: u64,
}
