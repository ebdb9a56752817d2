//! Who may ask: the holders of API keys, and of the attempt tokens that open one task's artifacts to whoever holds its attempt.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use rpc::error::ErrorCode;
use sha2::Sha256;
use store::KeyId;
use taskmarket::{Address, B256, Bytes32, TaskId, Timestamp};

use crate::api::App;
use crate::error::ApiError;
use crate::keys::{ApiKeys, Caller, Presented};
use crate::limits::{Buckets, Standing, network};

/// What every attempt token begins with: it tells people and secret scanners what they look at.
const TOKEN_PREFIX: &str = "zat_";
/// Who has no good key, as a refusal calls them.
const ANONYMOUS: &str = "without a good API key an address";
/// Where attempt tokens are good for anything.
const ARTIFACTS: &str = "/v1/artifacts/";
/// The name under which the store keeps the key of attempt tokens.
pub(crate) const TOKEN_SECRET: &str = "attempt-token";

/// What a request's key says of who asks. Every request carries it among its extensions.
#[derive(Debug, Clone)]
pub(crate) struct Identity(Result<Caller, ApiError>);

impl Identity {
    /// Who asks.
    ///
    /// # Errors
    /// 401 where the request carries no key, or one that is not good; 503 where that could not be found out.
    pub(crate) fn caller(&self) -> Result<&Caller, ApiError> {
        self.0.as_ref().map_err(Clone::clone)
    }

    /// Who asks, if they sent a good key.
    pub(crate) fn maybe(&self) -> Option<&Caller> {
        self.0.as_ref().ok()
    }

    fn none() -> Self {
        let how = "an API key is needed: send it as `Authorization: Bearer <key>`";
        Self(Err(ApiError::new(ErrorCode::InvalidApiKey, how).with_param("authorization")))
    }
}

/// Where a request's connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Who may ask, and how often.
pub(crate) struct Access {
    /// The API keys.
    pub(crate) keys: ApiKeys,
    tokens: AttemptTokens,
    by_key: Buckets<KeyId>,
    by_address: Buckets<IpAddr>,
    /// Requests a minute without a good key from one address; `None` for no limit.
    anonymous_per_minute: Option<u32>,
}

impl Access {
    /// Access by these keys and attempt tokens. `anonymous_per_minute` is how often one address may ask without either.
    pub(crate) fn new(keys: ApiKeys, tokens: AttemptTokens, anonymous_per_minute: Option<u32>) -> Self {
        Self {
            keys,
            tokens,
            by_key: Buckets::default(),
            by_address: Buckets::default(),
            anonymous_per_minute,
        }
    }

    /// Finds out who asks, and takes the request out of what they may ask.
    ///
    /// Attempt tokens hold for ever, and open nothing but artifacts: elsewhere who sends one is anonymous.
    async fn admit(&self, headers: &HeaderMap, path: &str, peer: IpAddr, now: Timestamp) -> Admission {
        let Some(token) = bearer(headers) else { return self.anonymous(peer, Identity::none()) };
        if self.tokens.check(token).is_some() {
            if !path.starts_with(ARTIFACTS) {
                return self.anonymous(peer, Identity::none());
            }
            return Admission { identity: Identity::none(), standing: None, refused: None };
        }
        let key = Presented::new(token);
        let caller = match self.keys.recall(&key, now) {
            Some(caller) => Ok(caller),
            None => {
                // Who has guessed too often guesses no more; a key that was good goes on to be looked up.
                if !self.keys.is_familiar(&key)
                    && let Err(refused) = self.may_guess(peer)
                {
                    return Admission { identity: Identity::none(), standing: None, refused: Some(refused) };
                }
                self.keys.find(&key, now).await
            }
        };
        match caller {
            Err(refused) => self.anonymous(peer, Identity(Err(refused))),
            Ok(caller) => {
                let standing = self.take(&caller);
                let refused =
                    standing.and_then(|standing| standing.check("this API key", "make", "requests").err());
                if refused.is_none() {
                    self.keys.count(&caller.id, now);
                }
                Admission { identity: Identity(Ok(caller)), standing, refused }
            }
        }
    }

    fn anonymous(&self, peer: IpAddr, identity: Identity) -> Admission {
        let limit = self.anonymous_per_minute;
        let standing = limit.map(|limit| self.by_address.take(network(peer), limit, Instant::now()));
        let refused = standing.and_then(|standing| standing.check(ANONYMOUS, "make", "requests").err());
        // Only keys are told where they stand: what is left to an address is its neighbours' too.
        Admission { identity, standing: None, refused }
    }

    fn may_guess(&self, peer: IpAddr) -> Result<(), ApiError> {
        let Some(limit) = self.anonymous_per_minute else { return Ok(()) };
        self.by_address.peek(network(peer), limit, Instant::now()).check(ANONYMOUS, "make", "requests")
    }

    fn take(&self, caller: &Caller) -> Option<Standing> {
        let limit = caller.requests_per_minute?;
        Some(self.by_key.take(caller.id.clone(), limit, Instant::now()))
    }

    /// Finds out anew who asks on a connection that stays open, and takes a further request out of what they may ask.
    ///
    /// # Errors
    /// 429 where it is one too many.
    pub(crate) async fn readmit(
        &self,
        headers: &HeaderMap,
        peer: Option<Peer>,
        now: Timestamp,
    ) -> Result<Identity, ApiError> {
        let admission = self.admit(headers, "", address(peer), now).await;
        admission.refused.map_or(Ok(admission.identity), Err)
    }
}

fn address(peer: Option<Peer>) -> IpAddr {
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |Peer(peer)| peer)
}

/// What became of a request at the door.
struct Admission {
    identity: Identity,
    standing: Option<Standing>,
    refused: Option<ApiError>,
}

/// Every request passes here: who asks is found out once, and who asks too often is sent away.
pub(crate) async fn identify(State(app): State<App>, mut request: Request<Body>, next: Next) -> Response {
    let peer = address(request.extensions().get().copied());
    let path = request.uri().path();
    let admission = app.access.admit(request.headers(), path, peer, app.market.now()).await;
    let mut response = match admission.refused {
        Some(refused) => refused.into_response(),
        None => {
            request.extensions_mut().insert(admission.identity);
            next.run(request).await
        }
    };
    if let Some(standing) = admission.standing {
        standing.tell(response.headers_mut());
    }
    response
}

/// What a request carries as `Authorization: Bearer …`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whose attempt a token is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The task.
    pub(crate) task_id: TaskId,
    /// The attempt.
    pub(crate) attempt: u32,
    /// The provider that it was offered to.
    pub(crate) provider: Address,
    /// The provider's host that it was offered to.
    pub(crate) node_id: Bytes32,
}

/// Makes and checks attempt tokens: `zat_<task id>_<attempt>_<provider>_<node id>_<HMAC-SHA256 of all four>`, hex without `0x`.
///
/// Nothing of a token is stored: it holds as long as the store's secret does, and means something only while its attempt is on offer to
/// its host or held by it. Whoever else was offered the same attempt has another token.
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
    pub(crate) fn mint(&self, grant: &Grant) -> String {
        let mac = self.mac(grant).finalize().into_bytes();
        let Grant { task_id, attempt, provider, node_id } = grant;
        let [task_id, provider, node_id, mac] =
            [task_id.0.as_slice(), provider.as_slice(), node_id.0.as_slice(), &mac].map(hex::encode);
        format!("{TOKEN_PREFIX}{task_id}_{attempt}_{provider}_{node_id}_{mac}")
    }

    /// Whose attempt a token is of, if this relay made it.
    pub(crate) fn check(&self, token: &str) -> Option<Grant> {
        let parts: Vec<&str> = token.strip_prefix(TOKEN_PREFIX)?.splitn(6, '_').collect();
        let &[task_id, attempt, provider, node_id, mac] = parts.as_slice() else { return None };
        let grant = Grant {
            task_id: TaskId(B256::from(unhex::<32>(task_id)?)),
            attempt: attempt.parse().ok()?,
            provider: Address::from(unhex::<20>(provider)?),
            node_id: Bytes32(B256::from(unhex::<32>(node_id)?)),
        };
        // Compares in constant time.
        self.mac(&grant).verify_slice(&unhex::<32>(mac)?).ok()?;
        Some(grant)
    }

    fn mac(&self, grant: &Grant) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(grant.task_id.0.as_slice());
        mac.update(&grant.attempt.to_be_bytes());
        mac.update(grant.provider.as_slice());
        mac.update(grant.node_id.0.as_slice());
        mac
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

impl fmt::Debug for AttemptTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptTokens([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_its_own_attempt_only() {
        let tokens = AttemptTokens::new([7; 32]);
        let grant = Grant {
            task_id: TaskId(B256::repeat_byte(0xab)),
            attempt: 3,
            provider: Address::repeat_byte(0xcd),
            node_id: Bytes32(B256::repeat_byte(0xef)),
        };
        let token = tokens.mint(&grant);
        assert_eq!(tokens.check(&token), Some(grant));
        assert_eq!(AttemptTokens::new([8; 32]).check(&token), None);
        let other = tokens.mint(&Grant { provider: Address::repeat_byte(0xce), ..grant });
        assert_ne!(other.rsplit('_').next(), token.rsplit('_').next(), "each provider has its own");
        let (body, mac) = token.rsplit_once('_').unwrap();
        for forged in [
            token.replacen("_3_", "_4_", 1),
            token.replacen("abab", "abac", 1),
            token.replacen("cdcd", "cdce", 1),
            token.replacen("efef", "efee", 1),
            token.replacen("zat_", "", 1),
            format!("{token}_"),
            format!("{token}00"),
            token[..token.len() - 2].to_owned(),
            format!("{body}_{}", "0".repeat(64)),
            format!("zat_{}_3_{mac}", hex::encode(grant.task_id.0)),
            "zat_".into(),
            String::new(),
        ] {
            assert_eq!(tokens.check(&forged), None, "{forged}");
        }
        assert!(!format!("{tokens:?}").contains('7'));
    }

    #[tokio::test]
    async fn a_token_lifts_the_limit_for_artifacts_only() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = std::sync::Arc::new(store::Sqlite::open(dir.path()).await.unwrap());
        let tokens = AttemptTokens::new([7; 32]);
        let access = Access::new(ApiKeys::new(store, []), tokens.clone(), Some(2));
        let token = tokens.mint(&Grant {
            task_id: TaskId(B256::ZERO),
            attempt: 1,
            provider: Address::ZERO,
            node_id: Bytes32(B256::ZERO),
        });
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        let admitted = async |path: &str| {
            let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
            access.admit(&headers, path, peer, Timestamp::MAX).await.refused.is_none()
        };
        for (path, expected) in [("/v1/info", true), ("/v1/tasks", true), ("/v1/info", false), ("", false)] {
            assert_eq!(admitted(path).await, expected, "{path}");
        }
        assert!(admitted("/v1/artifacts/00").await);
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
