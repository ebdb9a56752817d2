//! Where the artifacts' bytes are, as operators say it: a folder, or a bucket of an S3-compatible store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the artifacts' bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactLocation {
    /// A folder.
    Folder(PathBuf),
    /// A bucket of an S3-compatible store, which relays can share: `s3://bucket/prefix`.
    S3 {
        /// The bucket.
        bucket: String,
        /// What the objects' names begin with; may be empty.
        prefix: String,
    },
}

/// A location that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no bucket: write s3://bucket or s3://bucket/prefix")]
pub struct ParseLocationError(String);

impl From<PathBuf> for ArtifactLocation {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

impl From<&Path> for ArtifactLocation {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl FromStr for ArtifactLocation {
    type Err = ParseLocationError;

    fn from_str(text: &str) -> Result<Self, ParseLocationError> {
        let Some(rest) = text.strip_prefix("s3://") else { return Ok(Self::Folder(text.into())) };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let prefix = prefix.trim_matches('/');
        let has_plain_prefix = prefix.bytes().all(|byte| is_plain(byte) || byte == b'/');
        if bucket.is_empty()
            || !bucket.bytes().all(is_plain)
            || !has_plain_prefix
            || prefix.split('/').any(|part| [".", ".."].contains(&part))
        {
            return Err(ParseLocationError(text.to_owned()));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for ArtifactLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_are_told_apart() {
        let of = |text: &str| text.parse::<ArtifactLocation>();
        assert_eq!(of("./s3"), Ok(ArtifactLocation::Folder("./s3".into())));
        for (text, shown) in [("s3://b", "s3://b"), ("s3://b/", "s3://b"), ("s3://b.c/p/q/", "s3://b.c/p/q")]
        {
            let location = of(text).unwrap();
            assert!(matches!(location, ArtifactLocation::S3 { .. }));
            assert_eq!(location.to_string(), shown);
        }
        for wrong in ["s3://", "s3:///p", "s3://b/../c", "s3://key:secret@b/p", "s3://b/p?x=1"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
