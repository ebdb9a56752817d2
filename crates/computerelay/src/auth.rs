//! Who may ask: API keys, kept as hashes only, and the attempt tokens that open one task's artifacts to whoever holds its attempt.

use std::fmt;

use daemon::{Secret, constant_time_eq};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};
use store::KeyId;
use taskmarket::{B256, TaskId};

/// What every attempt token begins with: it tells people and secret scanners what they look at.
const TOKEN_PREFIX: &str = "zat_";
/// The name under which the store keeps the key of attempt tokens.
pub(crate) const TOKEN_SECRET: &str = "attempt-token";

/// The API keys that are taken. Only hashes are kept.
pub(crate) struct ApiKeys {
    keys: Vec<([u8; 32], KeyId)>,
}

impl ApiKeys {
    /// These keys.
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = &'a Secret>) -> Self {
        let keys =
            keys.into_iter().map(|key| (sha256(key.expose()), KeyId::of_api_key(key.expose()))).collect();
        Self { keys }
    }

    /// Which key this is, if it is one. Takes the same time whichever it is, and wherever a wrong one differs.
    pub(crate) fn find(&self, candidate: &str) -> Option<KeyId> {
        let hash = sha256(candidate);
        let matching = |found: Option<KeyId>, (known, id): &([u8; 32], KeyId)| {
            if constant_time_eq(known, &hash) { Some(id.clone()) } else { found }
        };
        self.keys.iter().fold(None, matching)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(_, id)| id)).finish()
    }
}

/// What a request carries as `Authorization: Bearer …`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Makes and checks attempt tokens: `zat_<task id>_<attempt>_<HMAC-SHA256 of both>`, hex without `0x`.
///
/// Nothing of a token is stored: it holds as long as the store's secret does, and means something only while its attempt is the
/// task's next or current one.
#[derive(Clone)]
pub(crate) struct AttemptTokens {
    key: [u8; 32],
}

impl AttemptTokens {
    /// Tokens under this secret.
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The token of an attempt.
    pub(crate) fn mint(&self, task_id: TaskId, attempt: u32) -> String {
        let mac = self.mac(task_id, attempt).finalize().into_bytes();
        format!("{TOKEN_PREFIX}{}_{attempt}_{}", hex::encode(task_id.0), hex::encode(mac))
    }

    /// Which attempt a token is of, if this relay made it.
    pub(crate) fn check(&self, token: &str) -> Option<(TaskId, u32)> {
        let mut parts = token.strip_prefix(TOKEN_PREFIX)?.split('_');
        let (id, attempt, mac) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let (mut id_bytes, mut mac_bytes) = ([0; 32], [0; 32]);
        hex::decode_to_slice(id, &mut id_bytes).ok()?;
        hex::decode_to_slice(mac, &mut mac_bytes).ok()?;
        let (task_id, attempt) = (TaskId(B256::from(id_bytes)), attempt.parse().ok()?);
        // Compares in constant time.
        self.mac(task_id, attempt).verify_slice(&mac_bytes).ok()?;
        Some((task_id, attempt))
    }

    fn mac(&self, task_id: TaskId, attempt: u32) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(task_id.0.as_slice());
        mac.update(&attempt.to_be_bytes());
        mac
    }
}

impl fmt::Debug for AttemptTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptTokens([redacted])")
    }
}

fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_keys_and_nothing_else() {
        let (one, two) = (Secret::new("key-one"), Secret::new("key-two"));
        let keys = ApiKeys::new([&one, &two]);
        assert_eq!(keys.find("key-one"), Some(KeyId::of_api_key("key-one")));
        assert_eq!(keys.find("key-two"), Some(KeyId::of_api_key("key-two")));
        for wrong in ["", "key-on", "key-one ", "KEY-ONE"] {
            assert_eq!(keys.find(wrong), None, "{wrong:?}");
        }
        assert!(!format!("{keys:?}").contains("key-one"));
    }

    #[test]
    fn a_token_opens_its_own_attempt_only() {
        let tokens = AttemptTokens::new([7; 32]);
        let id = TaskId(B256::repeat_byte(0xab));
        let token = tokens.mint(id, 3);
        assert_eq!(tokens.check(&token), Some((id, 3)));
        assert_eq!(AttemptTokens::new([8; 32]).check(&token), None);
        let hex_id = hex::encode(id.0);
        for forged in [
            token.replacen("_3_", "_4_", 1),
            token.replacen(&hex_id, &hex::encode([0xac; 32]), 1),
            token.replacen("zat_", "", 1),
            format!("{token}_"),
            format!("{token}00"),
            token[..token.len() - 2].to_owned(),
            format!("zat_{hex_id}_3_{}", "0".repeat(64)),
            "zat_".into(),
            String::new(),
        ] {
            assert_eq!(tokens.check(&forged), None, "{forged}");
        }
        assert!(!format!("{tokens:?}").contains('7'));
    }

    #[test]
    fn reads_bearer_tokens() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("bearer abc").as_deref(), Some("abc"));
        assert_eq!(with("Basic abc"), None);
        assert_eq!(with("abc"), None);
    }
}
