//! What a fetch may do, and the relay's blob store as a place to fetch from.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use url::Url;

use crate::digest::Digest;
use crate::error::FetchError;
use crate::reference::redact_url;

/// Public trustless gateways, of independent operators where there are.
const PUBLIC_GATEWAYS: [&str; 3] = ["https://trustless-gateway.link", "https://ipfs.io", "https://dweb.link"];

/// What a [`crate::Fetcher`] may do with a reference that a stranger wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPolicy {
    /// Whether `https` and plain `http` URLs may lead to this machine and to private networks. Plain
    /// `http` is never fetched from a public host, with or without this. Link-local and other special
    /// addresses stay refused.
    pub allow_private_addresses: bool,
    /// The folders under which `file://` references may lie.
    pub allowed_dirs: Vec<PathBuf>,
    /// The most bytes that one call may fetch, over all files of a folder.
    pub max_bytes: u64,
    /// The time that one call may take as a whole, all tries included.
    pub timeout: Duration,
    /// The time that a server may stay silent before the try counts as failed.
    pub idle_timeout: Duration,
    /// How many files, layers or blocks are fetched at a time.
    pub max_parallel: usize,
    /// The trustless gateways that `ipfs://` is fetched from, the first one first; none turns `ipfs://` off. They are the operator's
    /// choice, so they may have private addresses; where they redirect to is judged like any stranger's URL.
    pub ipfs_gateways: Vec<Url>,
    /// The largest IPFS block that is taken, in bytes. Networks of IPFS carry up to 2 MiB; never more than 4 MiB are taken.
    pub max_block_bytes: u64,
    /// The most IPFS blocks that one call may read, repeated ones counted each time.
    pub max_blocks: u64,
    /// How many redirects are followed for one request.
    pub max_redirects: u8,
    /// How many times a download is tried (and resumed, where the server can) before it fails.
    pub max_tries: u8,
    /// The pause before the second try; it doubles with each further one, and is shortened by a random
    /// part so that many nodes do not return in step.
    pub retry_pause: Duration,
}

impl Default for FetchPolicy {
    /// Public `https` only and no local files: 32 GiB (a large model) in at most an hour, 30 seconds of
    /// silence, 5 redirects, 5 tries from 250 ms on, 4 files at a time. IPFS from three public gateways, in a million blocks
    /// (32 GiB in pieces of 32 KiB) of 2 MiB.
    fn default() -> Self {
        Self {
            allow_private_addresses: false,
            allowed_dirs: Vec::new(),
            max_bytes: 32 << 30,
            timeout: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(30),
            max_parallel: 4,
            ipfs_gateways: PUBLIC_GATEWAYS.iter().filter_map(|url| Url::parse(url).ok()).collect(),
            max_block_bytes: 2 << 20,
            max_blocks: 1 << 20,
            max_redirects: 5,
            max_tries: 5,
            retry_pause: Duration::from_millis(250),
        }
    }
}

/// The relay's artifact endpoint: where `artifact://` references are fetched from.
///
/// Its address was chosen by the operator, so the guard against private addresses does not apply to it;
/// its redirects are not followed, so that the token goes nowhere else.
#[derive(Clone)]
pub struct Origin {
    base_url: Url,
    authorization: HeaderValue,
}

impl Origin {
    /// The endpoint below `base_url` (`http` or `https`), asked with `token` as the bearer token.
    ///
    /// # Errors
    /// `bad_reference` if `base_url` is no such URL or `token` cannot stand in a header.
    pub fn new(base_url: &str, token: &str) -> Result<Self, FetchError> {
        let bad = |reason: &str| FetchError::BadReference {
            reference: redact_url(base_url),
            reason: reason.to_owned(),
        };
        let base_url = Url::parse(base_url).map_err(|e| bad(&format!("not the URL of a relay: {e}")))?;
        if !matches!(base_url.scheme(), "http" | "https") || !base_url.has_host() {
            return Err(bad("the URL of a relay starts with http:// or https://"));
        }
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| bad("the relay's API key has characters that a header cannot carry"))?;
        authorization.set_sensitive(true);
        Ok(Self { base_url, authorization })
    }

    /// The URL of the blob `digest`.
    pub(crate) fn url_of(&self, digest: &Digest) -> Url {
        let mut url = self.base_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "artifacts", &digest.to_string()]);
        }
        url.set_query(None);
        url.set_fragment(None);
        url
    }

    /// The value of the Authorization header.
    pub(crate) fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("base_url", &redact_url(self.base_url.as_str()))
            .field("token", &"[redacted]")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_gateways_are_urls() {
        assert_eq!(FetchPolicy::default().ipfs_gateways.len(), PUBLIC_GATEWAYS.len());
    }

    #[test]
    fn urls_of_blobs_keep_the_base_path() {
        let digest = Digest::of(b"");
        for (base, start) in [
            ("https://relay.example", "https://relay.example/v1/artifacts/e3b0c442"),
            ("https://relay.example/a/?x=1#y", "https://relay.example/a/v1/artifacts/e3b0c442"),
        ] {
            let url = Origin::new(base, "t").unwrap().url_of(&digest);
            assert!(url.as_str().starts_with(start) && url.query().is_none(), "{url}");
        }
    }

    #[test]
    fn debug_shows_no_secret_and_bad_origins_are_refused() {
        let shown = format!("{:?}", Origin::new("https://u:pw@relay.example/?k=pw", "hunter2").unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("pw"), "{shown}");
        for (url, token) in [("ftp://relay", "t"), ("relay", "t"), ("https://relay", "a\nb")] {
            assert_eq!(Origin::new(url, token).unwrap_err().code(), "bad_reference");
        }
    }
}
