//! API keys: finding who a key is, making new ones, and counting what they are used for.
//!
//! The store has the keys, as SHA-256 only; those of the command line are here alone. A key that was found is remembered for
//! [`REMEMBERED`], so that most requests need no look into the store; a revocation at another relay takes effect after that time.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use daemon::{Secret, constant_time_eq};
use rpc::error::ErrorCode;
use rpc::keys::KeyView;
use sha2::{Digest as _, Sha256};
use store::{Deadlines, KeyId, NewKey, Scope, Store, StoreError, StoredKey};
use taskmarket::Timestamp;
use tokio::sync::watch;

use crate::error::ApiError;

/// What every key that is made here begins with: it tells people and secret scanners what they look at.
const PREFIX: &str = "zk-";
/// How long a key that was found is not looked up again.
const REMEMBERED: Duration = Duration::from_secs(2);
/// Keys that are remembered. One takes some 300 bytes.
const MAX_REMEMBERED: usize = 16_384;
/// The longest name of a key, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Keys that are read at a time.
pub(crate) const PAGE: usize = 500;
/// Seconds of a day.
pub(crate) const DAY: u64 = 24 * 60 * 60;

/// Who asks, by their API key.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Which key.
    pub(crate) id: KeyId,
    /// Requests a minute; `None` for no limit.
    pub(crate) requests_per_minute: Option<u32>,
    /// Tokens of inference a minute; `None` for no limit.
    pub(crate) tokens_per_minute: Option<u32>,
    /// How long its requests for inference may take.
    pub(crate) deadlines: Deadlines,
    scopes: Arc<[Scope]>,
}

impl Caller {
    /// Checks that the key reaches this far. `admin` reaches everywhere.
    ///
    /// # Errors
    /// 403, naming the scope that is missing.
    pub(crate) fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.contains(&scope) || self.is_admin() {
            return Ok(());
        }
        let message = format!("this needs an API key with the scope {scope}; key {} lacks it", self.id);
        Err(ApiError::new(ErrorCode::Forbidden, message).with_param("authorization"))
    }

    /// Whether the key is for the relay's operators.
    pub(crate) fn is_admin(&self) -> bool {
        self.scopes.contains(&Scope::Admin)
    }

    /// Whether what this key published may be seen whole.
    pub(crate) fn may_read(&self, owner: &KeyId) -> bool {
        self.id == *owner || self.is_admin()
    }
}

/// A key as somebody sent it.
pub(crate) struct Presented<'a> {
    text: &'a str,
    hash: [u8; 32],
}

impl<'a> Presented<'a> {
    /// The key of this text.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, hash: sha256(text) }
    }
}

/// The keys that are taken here.
pub(crate) struct ApiKeys {
    store: Arc<dyn Store>,
    /// The keys of the command line, which reach everywhere.
    fixed: Vec<([u8; 32], Caller)>,
    remembered: Mutex<Remembered>,
    used: Mutex<BTreeMap<(KeyId, u64), u64>>,
    /// Set off by each revocation here.
    revoked: watch::Sender<()>,
}

#[derive(Default)]
struct Remembered {
    keys: HashMap<[u8; 32], Found>,
    /// Counts revocations, so that a key that was read before one is not remembered after it.
    revocations: u64,
}

#[derive(Clone)]
struct Found {
    caller: Caller,
    expires_at: Option<Timestamp>,
    at: Instant,
}

impl ApiKeys {
    /// The keys of a store, and these of the command line.
    pub(crate) fn new<'a>(store: Arc<dyn Store>, fixed: impl IntoIterator<Item = &'a Secret>) -> Self {
        let of_command_line = |key: &Secret| {
            let id = KeyId::of_api_key(key.expose());
            let (requests_per_minute, tokens_per_minute) = (None, None);
            let scopes = Scope::ALL.into();
            let deadlines = Deadlines::default();
            (sha256(key.expose()), Caller { id, requests_per_minute, tokens_per_minute, deadlines, scopes })
        };
        let fixed = fixed.into_iter().map(of_command_line).collect();
        let (remembered, used) = (Mutex::default(), Mutex::default());
        Self { store, fixed, remembered, used, revoked: watch::Sender::new(()) }
    }

    /// Who a key is, if that is known without a look into the store.
    pub(crate) fn recall(&self, key: &Presented<'_>, now: Timestamp) -> Option<Caller> {
        let mut caller = None;
        // All of them are compared, so that the time taken says nothing of which it is.
        for (hash, known) in &self.fixed {
            if constant_time_eq(hash, &key.hash) {
                caller = Some(known.clone());
            }
        }
        caller.or_else(|| {
            let remembered = self.remembered();
            let found = remembered.keys.get(&key.hash)?;
            let is_good = found.at.elapsed() < REMEMBERED && !has_passed(found.expires_at, now);
            is_good.then(|| found.caller.clone())
        })
    }

    /// Whether a key was good a while ago, so that looking it up again is no guess.
    pub(crate) fn is_familiar(&self, key: &Presented<'_>) -> bool {
        self.remembered().keys.contains_key(&key.hash)
    }

    /// Looks a key up in the store.
    ///
    /// # Errors
    /// 401 if it is unknown, revoked or expired; 503 if the store does not answer.
    pub(crate) async fn find(&self, key: &Presented<'_>, now: Timestamp) -> Result<Caller, ApiError> {
        let id = KeyId::of_api_key(key.text);
        let revocations = self.remembered().revocations;
        // What does not look like a key of the store's is none.
        let stored = if key.text.starts_with(PREFIX) { self.store.key(&id).await? } else { None };
        // The id is a part of the hash; the rest of it decides.
        let stored = stored.filter(|stored| constant_time_eq(&stored.key.hash, &key.hash));
        let usable = stored.ok_or("is not known here").and_then(|stored| usable(stored, now));
        let stored = match usable {
            Ok(stored) => stored,
            Err(why) => {
                self.remembered().keys.remove(&key.hash);
                let message = format!("this API key {why}");
                return Err(ApiError::new(ErrorCode::InvalidApiKey, message).with_param("authorization"));
            }
        };
        let NewKey { requests_per_minute, tokens_per_minute, deadlines, scopes, .. } = stored;
        let caller = Caller { id, requests_per_minute, tokens_per_minute, deadlines, scopes: scopes.into() };
        let found = Found { caller: caller.clone(), expires_at: stored.expires_at, at: Instant::now() };
        self.remember(key.hash, found, revocations);
        Ok(caller)
    }

    fn remember(&self, hash: [u8; 32], found: Found, revocations: u64) {
        let mut remembered = self.remembered();
        if remembered.revocations != revocations {
            return;
        }
        if remembered.keys.len() >= MAX_REMEMBERED {
            remembered.keys.retain(|_, found| found.at.elapsed() < REMEMBERED);
            if remembered.keys.len() >= MAX_REMEMBERED {
                remembered.keys.clear();
            }
        }
        remembered.keys.insert(hash, found);
    }

    /// Forgets a key: it was revoked.
    pub(crate) fn forget(&self, id: &KeyId) {
        let mut remembered = self.remembered();
        remembered.revocations += 1;
        remembered.keys.retain(|_, found| found.caller.id != *id);
        drop(remembered);
        self.revoked.send_replace(());
    }

    /// Changes with each revocation here.
    pub(crate) fn revocations(&self) -> watch::Receiver<()> {
        self.revoked.subscribe()
    }

    /// How much longer a key that was found before is good at most; `None` where it is not any more.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn good_for(&self, id: &KeyId, now: Timestamp) -> Result<Option<Duration>, StoreError> {
        if self.fixed.iter().any(|(_, caller)| caller.id == *id) {
            return Ok(Some(Duration::MAX));
        }
        let key = self.store.key(id).await?.and_then(|stored| usable(stored, now).ok());
        let left = |at: Timestamp| Duration::from_secs(at.since(now));
        Ok(key.map(|key| key.expires_at.map_or(Duration::MAX, left)))
    }

    /// Counts a request.
    pub(crate) fn count(&self, id: &KeyId, now: Timestamp) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used.entry((id.clone(), now.unix() / DAY)).or_default() += 1;
    }

    /// Writes down what was counted since the last time. What cannot be written stays counted.
    ///
    /// # Errors
    /// The store fails.
    pub(crate) async fn write_usage(&self) -> Result<(), StoreError> {
        let counted = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if counted.is_empty() {
            return Ok(());
        }
        let rows = counted.iter().map(|((owner, day), requests)| store::Usage {
            owner: owner.clone(),
            day: *day,
            requests: *requests,
        });
        let written = self.store.add_usage(rows.collect()).await;
        // Where nobody knows whether it was written, counting it once too few is better than once too often.
        if written.is_err() && !matches!(written, Err(StoreError::TimedOut)) {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, requests) in counted {
                *used.entry(key).or_default() += requests;
            }
        }
        written
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.fixed.iter().map(|(_, caller)| &caller.id)).finish_non_exhaustive()
    }
}

fn usable(stored: StoredKey, now: Timestamp) -> Result<NewKey, &'static str> {
    match stored.revoked_at {
        Some(_) => Err("was revoked"),
        None if has_passed(stored.key.expires_at, now) => Err("has expired"),
        None => Ok(stored.key),
    }
}

fn has_passed(at: Option<Timestamp>, now: Timestamp) -> bool {
    at.is_some_and(|at| at <= now)
}

/// Whether a store has a key that is good now.
///
/// # Errors
/// The store fails.
pub(crate) async fn any_usable(store: &dyn Store, now: Timestamp) -> Result<bool, StoreError> {
    let mut after = None;
    loop {
        let page = store.keys(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(false) };
        after = Some(last.key.id.clone());
        if page.into_iter().any(|stored| usable(stored, now).is_ok()) {
            return Ok(true);
        }
    }
}

/// Writes down what keys were used for. What cannot be written now is written later.
pub(crate) async fn write_down(keys: &ApiKeys) {
    if let Err(error) = keys.write_usage().await {
        tracing::warn!(%error, "the use of API keys could not be written down");
    }
}

/// What a new key is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySpec {
    /// What its holder is called.
    pub(crate) name: String,
    /// What it may be used for.
    pub(crate) scopes: Vec<Scope>,
    /// From when it is no longer good.
    pub(crate) expires_at: Option<Timestamp>,
    /// Requests that it may make in a minute.
    pub(crate) requests_per_minute: Option<u32>,
    /// Tokens of inference that it may use in a minute.
    pub(crate) tokens_per_minute: Option<u32>,
    /// How long its requests for inference may take.
    pub(crate) deadlines: Deadlines,
}

/// Why a key cannot be made like this: the field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct BadSpec {
    /// The field.
    pub(crate) field: &'static str,
    reason: String,
}

impl KeySpec {
    /// Makes a key: its text, which is kept nowhere, and what is.
    ///
    /// # Errors
    /// A field holds what it may not.
    pub(crate) fn make(self, now: Timestamp) -> Result<(Secret, NewKey), BadSpec> {
        self.check(now)?;
        let text = format!("{PREFIX}{}", hex::encode(rand::random::<[u8; 32]>()));
        let Self { name, mut scopes, expires_at, requests_per_minute, tokens_per_minute, deadlines } = self;
        scopes.sort();
        scopes.dedup();
        let (id, hash) = (KeyId::of_api_key(&text), sha256(&text));
        let key = NewKey {
            id,
            hash,
            name,
            scopes,
            requests_per_minute,
            tokens_per_minute,
            deadlines,
            created_at: now,
            expires_at,
        };
        Ok((Secret::new(text), key))
    }

    fn check(&self, now: Timestamp) -> Result<(), BadSpec> {
        let bad = |field, reason: &str| Err(BadSpec { field, reason: reason.to_owned() });
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES || self.name.chars().any(char::is_control)
        {
            let reason = format!("1 to {MAX_NAME_BYTES} bytes of text in one line");
            return Err(BadSpec { field: "name", reason });
        }
        if self.scopes.is_empty() {
            return bad("scopes", "at least one of tasks:write, tasks:read, inference, admin");
        }
        if has_passed(self.expires_at, now) {
            return bad("expires_at", "lies in the past");
        }
        for (field, limit) in
            [("requests_per_minute", self.requests_per_minute), ("tokens_per_minute", self.tokens_per_minute)]
        {
            if limit == Some(0) {
                return bad(field, "at least 1, or absent for no limit");
            }
        }
        let Deadlines { total, first_byte, between_tokens } = self.deadlines;
        for (field, deadline) in [
            ("inference_timeout_secs", total),
            ("first_byte_timeout_secs", first_byte),
            ("token_timeout_secs", between_tokens),
        ] {
            if deadline == Some(0) {
                return bad(field, "at least 1, or absent for the relay's own");
            }
        }
        Ok(())
    }
}

/// A key as people see it.
pub(crate) fn view(stored: &StoredKey) -> KeyView {
    let StoredKey { key, revoked_at } = stored;
    KeyView {
        id: key.id.to_string(),
        name: key.name.clone(),
        scopes: key.scopes.iter().map(Scope::to_string).collect(),
        requests_per_minute: key.requests_per_minute,
        tokens_per_minute: key.tokens_per_minute,
        inference_timeout_secs: key.deadlines.total,
        first_byte_timeout_secs: key.deadlines.first_byte,
        token_timeout_secs: key.deadlines.between_tokens,
        created_at: key.created_at,
        expires_at: key.expires_at,
        revoked_at: *revoked_at,
    }
}

fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::MAX;

    fn spec(scope: Scope) -> KeySpec {
        KeySpec {
            name: "a".to_owned(),
            scopes: vec![scope, scope],
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            deadlines: Deadlines::default(),
        }
    }

    async fn keys(dir: &tempfile::TempDir) -> ApiKeys {
        let store = store::Sqlite::open(dir.path()).await.unwrap();
        ApiKeys::new(Arc::new(store), [&Secret::new("fixed")])
    }

    #[tokio::test]
    async fn keys_are_found_and_nothing_else_is() {
        let dir = tempfile::TempDir::new().unwrap();
        let keys = keys(&dir).await;
        let (secret, made) = spec(Scope::TasksRead).make(NOW).unwrap();
        let id = made.id.clone();
        assert_eq!(made.scopes, [Scope::TasksRead]);
        assert!(keys.store.add_key(made).await.unwrap());

        let fixed = keys.recall(&Presented::new("fixed"), NOW).unwrap();
        assert!(fixed.is_admin() && fixed.require(Scope::Inference).is_ok());
        let presented = Presented::new(secret.expose());
        assert!(keys.recall(&presented, NOW).is_none() && !keys.is_familiar(&presented));
        let found = keys.find(&presented, NOW).await.unwrap();
        assert_eq!(found.id, id);
        assert!(found.require(Scope::TasksRead).is_ok() && found.require(Scope::TasksWrite).is_err());
        assert!(keys.recall(&presented, NOW).is_some(), "it is remembered");
        for wrong in ["", "fixe", "FIXED", &secret.expose()[..66], &secret.expose().to_uppercase()] {
            let wrong = Presented::new(wrong);
            assert!(keys.recall(&wrong, NOW).is_none() && keys.find(&wrong, NOW).await.is_err());
        }
        assert!(!format!("{keys:?}").contains("fixed"));
    }

    #[tokio::test]
    async fn a_key_read_before_its_revocation_is_not_remembered_after_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let keys = keys(&dir).await;
        let caller = keys.recall(&Presented::new("fixed"), NOW).unwrap();
        let found = Found { caller: caller.clone(), expires_at: None, at: Instant::now() };
        let before = keys.remembered().revocations;
        keys.remember([1; 32], found.clone(), before);
        assert_eq!(keys.remembered().keys.len(), 1);
        keys.forget(&caller.id);
        keys.remember([1; 32], found, before);
        assert!(keys.remembered().keys.is_empty());
    }
}
