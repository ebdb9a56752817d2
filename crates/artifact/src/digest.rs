//! SHA-256 digests: the names of everything that this crate stores.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tokio::io::AsyncReadExt;

/// How much of a file is read and hashed at a time: big enough to make system calls rare, small
/// enough that hashing one piece (some 0.15 ms) does not hold up the other tasks of the thread.
const READ_BYTES: usize = 256 * 1024;

/// The SHA-256 of some bytes. Printed as 64 lower-case hex digits without `0x`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

/// The text is not a SHA-256 in hex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is written as 64 hex digits, with or without 0x in front")]
pub struct ParseDigestError;

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest and the size in bytes of the file at `path`, read in pieces.
    pub async fn of_file(path: &Path) -> std::io::Result<(Self, u64)> {
        let mut file = tokio::fs::File::open(path).await?;
        file.set_max_buf_size(READ_BYTES);
        let mut piece = vec![0; READ_BYTES];
        let mut hasher = Hasher::new();
        loop {
            match file.read(&mut piece).await? {
                0 => return Ok((hasher.digest(), hasher.len())),
                n => hasher.update(&piece[..n]),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| ParseDigestError)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Computes a [`Digest`] over bytes that arrive in pieces, and counts them.
#[derive(Clone, Default)]
pub struct Hasher {
    sha: sha2::Sha256,
    len: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.sha.update(piece);
        self.len += piece.len() as u64;
    }

    /// How many bytes were taken so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was taken so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of all bytes taken so far; more can follow.
    pub fn digest(&self) -> Digest {
        Digest(self.sha.clone().finalize().into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's own example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn matches_the_standards_example_in_one_or_many_pieces() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        let mut hasher = Hasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!((hasher.digest().to_string().as_str(), hasher.len()), (ABC, 3));
    }

    #[test]
    fn reads_with_and_without_prefix_and_refuses_the_rest() {
        let digest = Digest::of(b"abc");
        assert_eq!(ABC.parse(), Ok(digest));
        assert_eq!(format!("0x{}", ABC.to_uppercase()).parse(), Ok(digest));
        for bad in ["", "0x", &ABC[1..], &format!("{ABC}0"), &format!("0X{ABC}"), &ABC.replace('b', "g")] {
            assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad}");
        }
    }
}
