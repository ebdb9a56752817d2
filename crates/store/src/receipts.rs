//! What inference was served through the relay: a record of each request, and the tokens that keys used.

use async_trait::async_trait;
use taskmarket::Timestamp;

use crate::{KeyId, StoreError, UsageFilter};

/// Records of inference, and the use of models.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Receipts: Send + Sync {
    /// Keeps what was served and adds it to the use of its keys, days and models: all of it or nothing. Of one key's records with one
    /// request id, the last stays.
    async fn add_receipts(&self, receipts: Vec<Receipt>) -> Result<(), StoreError>;

    /// The record of a request; of `owner`'s only, where one is given, else the newest of that id.
    async fn receipt(
        &self,
        owner: Option<KeyId>,
        request_id: &str,
    ) -> Result<Option<StoredReceipt>, StoreError>;

    /// Forgets records of requests that came before `before`. What they added to the use of models stays.
    async fn prune_receipts(&self, before: Timestamp) -> Result<u64, StoreError>;

    /// The use of models in the order of days, keys and models, `limit` at most, from the one after `after`.
    async fn model_usage(
        &self,
        filter: UsageFilter,
        after: Option<(u64, KeyId, String)>,
        limit: usize,
    ) -> Result<Vec<ModelUsage>, StoreError>;
}

/// A request that was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Whose it was.
    pub owner: KeyId,
    /// The relay's id of it.
    pub request_id: String,
    /// When it came.
    pub at: Timestamp,
    /// Which model served it.
    pub model: String,
    /// Tokens in.
    pub prompt_tokens: u64,
    /// Tokens out.
    pub completion_tokens: u64,
    /// All that is to be told of it, as JSON.
    pub record: String,
}

/// A record as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReceipt {
    /// Whose request it was.
    pub owner: KeyId,
    /// What was to be told of it.
    pub record: String,
}

/// What a key used of a model on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUsage {
    /// Which key.
    pub owner: KeyId,
    /// Which day, counted in UTC from 1970-01-01.
    pub day: u64,
    /// Which model.
    pub model: String,
    /// Requests served.
    pub requests: u64,
    /// Tokens in.
    pub prompt_tokens: u64,
    /// Tokens out.
    pub completion_tokens: u64,
}

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// What these records add to the use of models, in the order of days, keys and models.
pub(crate) fn use_of(receipts: &[Receipt]) -> Vec<ModelUsage> {
    let mut all = std::collections::BTreeMap::new();
    for receipt in receipts {
        let day = receipt.at.unix() / DAY;
        let usage = all.entry((day, &receipt.owner, &receipt.model)).or_insert((0, 0, 0));
        usage.0 += 1;
        usage.1 += receipt.prompt_tokens;
        usage.2 += receipt.completion_tokens;
    }
    let row = |((day, owner, model), (requests, prompt_tokens, completion_tokens)): (
        (u64, &KeyId, &String),
        (u64, u64, u64),
    )| ModelUsage {
        owner: owner.clone(),
        day,
        model: model.clone(),
        requests,
        prompt_tokens,
        completion_tokens,
    };
    all.into_iter().map(row).collect()
}
