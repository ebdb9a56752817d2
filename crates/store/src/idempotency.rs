//! Requests that may be sent again: the answer to the first is kept, and given to the others.

use async_trait::async_trait;
use taskmarket::Timestamp;

use crate::row::{parse, text};
use crate::{KeyId, StoreError};

/// For how long an answer is kept, in seconds: a day.
pub const ANSWER_KEPT_SECS: u64 = 24 * 60 * 60;

/// After how many seconds a request without an answer is given up for lost with its relay, so that the next one may begin.
pub const IN_FLIGHT_SECS: u64 = 60;

/// Idempotency keys, each one API key's own.
///
/// Every method fails with [`StoreError`] as its variants say.
#[async_trait]
pub trait Idempotency: Send + Sync {
    /// Begins a request under an idempotency key, or says what became of the one before it. `request` tells requests apart: the SHA-256
    /// of method, path and body.
    ///
    /// Of many that begin at once one is [`Begun::New`]; that one must [`Idempotency::finish`] or [`Idempotency::abandon`].
    async fn begin(
        &self,
        owner: &KeyId,
        key: &str,
        request: [u8; 32],
        now: Timestamp,
    ) -> Result<Begun, StoreError>;

    /// Says that a request that began, or was renewed, at `before` is still carried out: its mark lapses [`IN_FLIGHT_SECS`] after `now`,
    /// and its answer is kept for [`ANSWER_KEPT_SECS`] from then on. Answers whether it has its mark still.
    async fn renew(
        &self,
        owner: &KeyId,
        key: &str,
        before: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Keeps the answer to a request that began. The first answer stays.
    async fn finish(&self, owner: &KeyId, key: &str, answer: StoredAnswer) -> Result<(), StoreError>;

    /// Forgets a request that began and has no answer, so that it may be tried again.
    async fn abandon(&self, owner: &KeyId, key: &str) -> Result<(), StoreError>;

    /// Forgets requests that began before a time, and answers how many.
    async fn prune_idempotency(&self, before: Timestamp) -> Result<u64, StoreError>;
}

/// What became of a request under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is the first: carry it out.
    New,
    /// The first has no answer yet.
    InFlight,
    /// The first had this answer.
    Done(StoredAnswer),
    /// The first was another request.
    Mismatch,
}

/// An answer as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// Its HTTP status.
    pub status: u16,
    /// Its media type.
    pub content_type: String,
    /// Other headers, by name.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl StoredAnswer {
    /// The headers as they are stored.
    pub(crate) fn headers_text(&self) -> Result<String, StoreError> {
        text(&self.headers)
    }

    /// The headers that are stored so; answers of older versions have none.
    pub(crate) fn headers_of(stored: Option<&str>) -> Result<Vec<(String, String)>, StoreError> {
        stored.map_or(Ok(Vec::new()), |stored| parse(stored, || "the headers of a kept answer".to_owned()))
    }
}

/// A kept request.
pub(crate) struct Entry {
    pub(crate) request: Vec<u8>,
    pub(crate) began_at: Timestamp,
    pub(crate) answer: Option<StoredAnswer>,
}

impl Entry {
    /// What the same idempotency key means now; [`Begun::New`] if this entry is to be replaced.
    pub(crate) fn again(self, request: &[u8; 32], now: Timestamp) -> Begun {
        let age = now.since(self.began_at);
        if age >= ANSWER_KEPT_SECS {
            return Begun::New;
        }
        if self.request != request {
            return Begun::Mismatch;
        }
        match self.answer {
            Some(answer) => Begun::Done(answer),
            None if age >= IN_FLIGHT_SECS => Begun::New,
            None => Begun::InFlight,
        }
    }
}
