//! API keys: who may call, what for, and how often. The keys themselves are kept nowhere, only their hashes.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use taskmarket::Timestamp;

use crate::{KeyId, StoreError};

/// API keys.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Keys: Send + Sync {
    /// Keeps a new key. `false`, and nothing changes, if there is one of this id.
    async fn add_key(&self, key: NewKey) -> Result<bool, StoreError>;

    /// A key, revoked and expired ones too.
    async fn key(&self, id: &KeyId) -> Result<Option<StoredKey>, StoreError>;

    /// Keys in the order of their ids, `limit` at most, from the one after `after`.
    async fn keys(&self, after: Option<KeyId>, limit: usize) -> Result<Vec<StoredKey>, StoreError>;

    /// Revokes a key. `false` if it is unknown or has been revoked already; then nothing changes.
    async fn revoke_key(&self, id: &KeyId, at: Timestamp) -> Result<bool, StoreError>;
}

/// An API key to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Which key.
    pub id: KeyId,
    /// The key's SHA-256.
    pub hash: [u8; 32],
    /// What its holder is called.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// Requests that it may make in a minute; `None` for no limit.
    pub requests_per_minute: Option<u32>,
    /// Tokens of inference that it may use in a minute; `None` for no limit.
    pub tokens_per_minute: Option<u32>,
    /// How long its requests for inference may take.
    pub deadlines: Deadlines,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when it is no longer good; `None` for never.
    pub expires_at: Option<Timestamp>,
}

/// How long a key's requests for inference may take, in seconds; `None` where the relay's own deadline alone counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// From the first to the last byte.
    pub total: Option<u32>,
    /// Until the first byte of a streamed answer, for each host that is asked.
    pub first_byte: Option<u32>,
    /// Between two pieces of a streamed answer.
    pub between_tokens: Option<u32>,
}

/// An API key as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The key as it was made.
    pub key: NewKey,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What an API key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// To publish tasks and to change them.
    TasksWrite,
    /// To read tasks, providers and results.
    TasksRead,
    /// To call models.
    Inference,
    /// To run the relay: keys, usage.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TasksWrite, Self::TasksRead, Self::Inference, Self::Admin];

    /// The scope's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TasksWrite => "tasks:write",
            Self::TasksRead => "tasks:read",
            Self::Inference => "inference",
            Self::Admin => "admin",
        }
    }

    /// Scopes in one text, for a column.
    pub(crate) fn join(scopes: &[Self]) -> String {
        scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Reads what [`Scope::join`] wrote.
    pub(crate) fn split(text: &str) -> Result<Vec<Self>, StoreError> {
        text.split_whitespace().map(|word| word.parse().map_err(StoreError::corrupt)).collect()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is no scope's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope: tasks:write, tasks:read, inference or admin")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(word: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == word);
        found.ok_or_else(|| UnknownScope(word.to_owned()))
    }
}
