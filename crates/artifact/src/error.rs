//! Why a fetch failed.

use std::io;
use std::time::Duration;

use crate::digest::Digest;
use crate::manifest::ManifestError;

/// Why a reference could not be fetched. The `reference` in each variant is what the caller named,
/// without user-info and query string, so messages are fit for logs and for other parties.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The reference is malformed, or names a folder where a file is meant or the other way round.
    #[error("{reference}: {reason}")]
    #[allow(missing_docs)]
    BadReference { reference: String, reason: String },
    /// The reference is well formed, but its scheme cannot be fetched here.
    #[error("{reference}: {scheme}:// cannot be fetched here; use https://, artifact:// or file://")]
    #[allow(missing_docs)]
    UnsupportedScheme { reference: String, scheme: &'static str },
    /// The policy forbids it.
    #[error("{reference}: {reason}")]
    #[allow(missing_docs)]
    NotAllowed { reference: String, reason: String },
    /// The host is, or resolves to, an address that references may not lead to.
    #[error(
        "{reference}: {host} is not a public address; publish the file at a public https URL or upload it to the relay"
    )]
    #[allow(missing_docs)]
    ForbiddenAddress { reference: String, host: String },
    /// The server, the folder or the file system does not have it.
    #[error("{reference}: {what} does not exist there")]
    #[allow(missing_docs)]
    NotFound { reference: String, what: String },
    /// The server asks for other credentials.
    #[error(
        "{reference}: the server refuses access ({status}); check the API key or the link's access rights"
    )]
    #[allow(missing_docs)]
    Unauthorized { reference: String, status: u16 },
    /// More bytes than the policy permits.
    #[error(
        "{reference}: larger than the {limit} bytes that may be fetched; raise the limit or use a smaller file"
    )]
    #[allow(missing_docs)]
    TooLarge { reference: String, limit: u64 },
    /// The bytes are not the ones that were asked for; none of them was kept.
    #[error(
        "{reference}: its SHA-256 is {actual}, but {expected} was asked for; the content changed or the hash is wrong"
    )]
    #[allow(missing_docs)]
    HashMismatch { reference: String, expected: Digest, actual: Digest },
    /// The server was silent for too long, or the whole fetch took too long.
    #[error("{reference}: gave up after {after:?} without {what}; try again or raise the limit")]
    #[allow(missing_docs)]
    TimedOut { reference: String, after: Duration, what: &'static str },
    /// A longer chain of redirects than the policy permits.
    #[error("{reference}: more than {limit} redirects; use the final URL")]
    #[allow(missing_docs)]
    TooManyRedirects { reference: String, limit: u8 },
    /// No connection, a broken one, or an answer that is not one; after all tries.
    #[error("{reference}: {reason}; check the address, or try again later")]
    #[allow(missing_docs)]
    Unreachable { reference: String, reason: String },
    /// The folder's manifest is malformed or does not fit its files.
    #[error("{reference}: bad folder manifest: {source}")]
    #[allow(missing_docs)]
    BadManifest { reference: String, source: ManifestError },
    /// This machine's file system failed.
    #[error("{reference}: {source}; check the disk and the permissions of this machine")]
    #[allow(missing_docs)]
    Io { reference: String, source: io::Error },
}

impl FetchError {
    /// The stable name of the error, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadReference { .. } => "bad_reference",
            Self::UnsupportedScheme { .. } => "unsupported_scheme",
            Self::NotAllowed { .. } => "not_allowed",
            Self::ForbiddenAddress { .. } => "forbidden_address",
            Self::NotFound { .. } => "not_found",
            Self::Unauthorized { .. } => "unauthorized",
            Self::TooLarge { .. } => "too_large",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::TimedOut { .. } => "timed_out",
            Self::TooManyRedirects { .. } => "too_many_redirects",
            Self::Unreachable { .. } => "unreachable",
            Self::BadManifest { .. } => "bad_manifest",
            Self::Io { .. } => "io",
        }
    }
}
