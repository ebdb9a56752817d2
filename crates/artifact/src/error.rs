//! Why a fetch failed, and under which name. By whose making each failure comes is told where all codes of tasks are
//! listed, in `rpc::failure`.

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
    /// The reference is well formed, but its scheme cannot be fetched here in this way.
    #[error("{reference}: {scheme}:// {reason}")]
    #[allow(missing_docs)]
    UnsupportedScheme { reference: String, scheme: &'static str, reason: &'static str },
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
    #[error("{reference}: gave up after {after:?} without {wait}; try again or raise the limit")]
    #[allow(missing_docs)]
    TimedOut { reference: String, after: Duration, wait: Wait },
    /// Redirects that lead back to where they came from, or a longer chain than the policy permits.
    #[error("{reference}: redirects in a circle, or more than {limit} of them; use the final URL")]
    #[allow(missing_docs)]
    TooManyRedirects { reference: String, limit: u8 },
    /// No connection, a broken one, or an answer that is not one; after all tries.
    #[error("{reference}: {reason}; check the address, or try again later")]
    #[allow(missing_docs)]
    Unreachable { reference: String, reason: String, how: Unreached },
    /// The content came, and it is malformed or of a kind that is not read here: a folder's manifest, an
    /// IPFS tree, a container image.
    #[error("{reference}: {source}")]
    #[allow(missing_docs)]
    BadManifest { reference: String, source: ContentError },
    /// The store's bound leaves no room beside files that are in use or being fetched, though the disk may have some.
    #[error(
        "{reference}: no room for {needed} bytes beside the files in use, which may take {limit} with it; try again once they are done"
    )]
    #[allow(missing_docs)]
    CacheBusy { reference: String, needed: u64, limit: u64 },
    /// This machine's file system failed.
    #[error("{reference}: {source}; check the disk and the permissions of this machine")]
    #[allow(missing_docs)]
    Io { reference: String, source: io::Error },
}

/// What was waited for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// The next bytes of a server.
    #[error("a sign of life from the server")]
    Server,
    /// The end of the whole fetch.
    #[error("an end")]
    Whole,
}

/// How a source failed to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreached {
    /// There was no connection, or no answer of use.
    Server,
    /// Each try broke off before its end.
    Truncated,
    /// No IPFS gateway served all blocks; the reason says what each did.
    Gateways,
}

/// What is wrong with content that came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The folder's manifest is malformed or does not fit its files.
    #[error("bad folder manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// The server compressed it, though the bytes themselves were asked for. It is not decoded, so it cannot swell.
    #[error("the server sends it with content-encoding {encoding}; serve the file's own bytes")]
    #[allow(missing_docs)]
    Encoded { encoding: String },
    /// An IPFS block is of a codec other than raw and dag-pb.
    #[error("{cid}: codec 0x{codec:x} is not read here, only raw (0x55) and dag-pb (0x70)")]
    #[allow(missing_docs)]
    UnsupportedCodec { cid: String, codec: u64 },
    /// A CID is made by a hash function other than SHA-256, SHA-512 and identity.
    #[error("{cid}: hash function 0x{function:x} is not known here, only sha2-256, sha2-512 and identity")]
    #[allow(missing_docs)]
    UnsupportedHash { cid: String, function: u64 },
    /// A UnixFS node is neither a file nor a folder.
    #[error("{cid}: {what} is neither a file nor a folder")]
    #[allow(missing_docs)]
    UnsupportedNode { cid: String, what: String },
    /// A block is the right one by its hash, but no well-formed part of a file or a folder.
    #[error("{cid}: {reason}")]
    #[allow(missing_docs)]
    BadBlock { cid: String, reason: String },
    /// The image is not made for the platform.
    #[error("the image has no variant for {platform}, only for {offered}")]
    #[allow(missing_docs)]
    NoPlatform { platform: String, offered: String },
    /// The image's manifest, configuration or layers are not what they have to be.
    #[error("bad image: {reason}")]
    #[allow(missing_docs)]
    BadImage { reason: String },
}

impl ContentError {
    /// The stable name of the error, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "bad_manifest",
            Self::Encoded { .. } => "content_encoded",
            Self::UnsupportedCodec { .. } => "unsupported_codec",
            Self::UnsupportedHash { .. } => "unsupported_hash",
            Self::UnsupportedNode { .. } => "unsupported_node",
            Self::BadBlock { .. } => "bad_block",
            Self::NoPlatform { .. } => "image_without_platform",
            Self::BadImage { .. } => "bad_image",
        }
    }
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
            Self::TimedOut { wait: Wait::Server, .. } => "stalled",
            Self::TimedOut { wait: Wait::Whole, .. } => "timed_out",
            Self::TooManyRedirects { .. } => "redirect_loop",
            Self::Unreachable { how: Unreached::Server, .. } => "unreachable",
            Self::Unreachable { how: Unreached::Truncated, .. } => "truncated",
            Self::Unreachable { how: Unreached::Gateways, .. } => "no_gateway_served_it",
            Self::BadManifest { source, .. } => source.code(),
            Self::CacheBusy { .. } => "cache_busy",
            Self::Io { .. } if self.is_disk_full() => "disk_full",
            Self::Io { .. } => "io",
        }
    }

    /// Whether this machine's disk has no more room.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_one_kind_are_told_apart() {
        let reference = || "r".to_owned();
        let io = |kind: io::ErrorKind| FetchError::Io { reference: reference(), source: kind.into() };
        let gone = |how| FetchError::Unreachable { reference: reference(), reason: String::new(), how };
        let late = |wait| FetchError::TimedOut { reference: reference(), after: Duration::ZERO, wait };
        let bad = |source| FetchError::BadManifest { reference: reference(), source };
        let platform = ContentError::NoPlatform { platform: String::new(), offered: String::new() };
        for (error, code) in [
            (io(io::ErrorKind::StorageFull), "disk_full"),
            (io(io::ErrorKind::PermissionDenied), "io"),
            (gone(Unreached::Server), "unreachable"),
            (gone(Unreached::Truncated), "truncated"),
            (gone(Unreached::Gateways), "no_gateway_served_it"),
            (late(Wait::Server), "stalled"),
            (late(Wait::Whole), "timed_out"),
            (bad(ManifestError::TooLong.into()), "bad_manifest"),
            (FetchError::CacheBusy { reference: reference(), needed: 2, limit: 1 }, "cache_busy"),
            (bad(platform), "image_without_platform"),
            (FetchError::TooManyRedirects { reference: reference(), limit: 1 }, "redirect_loop"),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
