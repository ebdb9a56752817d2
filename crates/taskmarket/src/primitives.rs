//! The small types that messages are made of: ids, hashes, amounts, times and content references.
//!
//! Each parses at the edge and cannot hold a wrong value afterwards. Their JSON forms are those of the public interface.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{Address, B256, U256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not the value that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ParseError {
    what: &'static str,
    why: String,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, why: why.into() }
    }
}

/// Reads and writes a value as the string that `FromStr` and `Display` agree on.
macro_rules! serde_as_string {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_string;

fn hex32(what: &'static str, text: &str, prefix_required: bool) -> Result<[u8; 32], ParseError> {
    let digits = match text.strip_prefix("0x") {
        Some(digits) => digits,
        None if prefix_required => return Err(ParseError::new(what, "it must begin with 0x")),
        None => text,
    };
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| {
        ParseError::new(what, format!("expected 64 hex digits, got {} characters", digits.len()))
    })?;
    Ok(bytes)
}

/// A task's id: the EIP-712 digest of its signed `Task`. `0x` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub B256);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex32("task id", text, true).map(|bytes| Self(B256::from(bytes)))
    }
}
serde_as_string!(TaskId);

/// 32 bytes without a meaning of their own (salts, nonces, node ids, keccak hashes). `0x` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes32(pub B256);

impl fmt::Display for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Bytes32 {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex32("32 bytes", text, true).map(|bytes| Self(B256::from(bytes)))
    }
}
serde_as_string!(Bytes32);

/// The SHA-256 of some content (a model, an input, a result). Printed as 64 hex digits; `0x` is optional on input.
///
/// All zero means "unpinned": the requester names no hash that the content must have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContentHash(pub B256);

impl ContentHash {
    /// The hash that pins nothing.
    pub const UNPINNED: Self = Self(B256::ZERO);

    /// Whether this names a content, rather than leaving it open.
    pub fn is_pinned(&self) -> bool {
        *self != Self::UNPINNED
    }

    /// Whether content of hash `other` is what this asks for: any content if unpinned.
    pub fn admits(&self, other: &Self) -> bool {
        !self.is_pinned() || self == other
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentHash {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        hex32("SHA-256 hash", text, false).map(|bytes| Self(B256::from(bytes)))
    }
}
serde_as_string!(ContentHash);

/// An amount of money in the token's smallest unit. A decimal string in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(pub U256);

impl Amount {
    /// No money.
    pub const ZERO: Self = Self(U256::ZERO);

    /// The sum, or `None` where it does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or `None` where it would be negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Half of it, rounded up.
    pub fn half_up(self) -> Self {
        Self(self.0 / U256::from(2) + self.0 % U256::from(2))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Amount {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        const WHAT: &str = "amount";
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseError::new(WHAT, "expected decimal digits in the token's smallest unit"));
        }
        U256::from_str_radix(text, 10)
            .map(Self)
            .map_err(|_| ParseError::new(WHAT, "it does not fit in 256 bits"))
    }
}
serde_as_string!(Amount);

/// A point in time, in whole unix seconds. RFC 3339 in UTC in JSON (`2026-01-31T12:00:00Z`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last time that is taken: 9999-12-30T22:00:00Z, the last that can be written in every time zone.
    pub const MAX: Self = Self(253_402_207_200);

    /// The time so many seconds after 1970-01-01 UTC, capped to [`Timestamp::MAX`].
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.min(Self::MAX.0))
    }

    /// Seconds since 1970-01-01 UTC.
    pub fn unix(self) -> u64 {
        self.0
    }

    /// The time `seconds` later, capped to [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, seconds: u64) -> Self {
        Self::from_unix(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this, zero if this is not later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds between two times, whichever is first.
    pub fn distance(self, other: Self) -> u64 {
        self.0.abs_diff(other.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.0).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
            Some(time) => fmt::Display::fmt(&time, f),
            None => f.write_str("9999-12-30T22:00:00Z"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        const WHAT: &str = "time";
        let time: jiff::Timestamp = text
            .parse()
            .map_err(|_| ParseError::new(WHAT, "expected RFC 3339, such as 2026-01-31T12:00:00Z"))?;
        if time.subsec_nanosecond() != 0 {
            return Err(ParseError::new(WHAT, "signed times are whole seconds"));
        }
        u64::try_from(time.as_second())
            .map(Self::from_unix)
            .map_err(|_| ParseError::new(WHAT, "it is before 1970"))
    }
}
serde_as_string!(Timestamp);

/// A reference to content: `ipfs://<cid>[/path]`, `https://…`, `http://…`, `artifact://<sha256>[/]`, `oci://<image>@sha256:…`
/// `file://…`, or `model://<id>`, a model that an engine serves. The text is kept as it was signed; whether a node can fetch it is the node's word.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(String);

/// The longest reference, in bytes.
pub const MAX_REFERENCE_BYTES: usize = 2048;

const SCHEMES: [&str; 7] = ["ipfs://", "https://", "http://", "artifact://", "oci://", "file://", "model://"];

impl Reference {
    /// The text as signed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the reference itself fixes the content (a CID or a digest), so that no separate hash is needed.
    pub fn is_content_addressed(&self) -> bool {
        ["ipfs://", "artifact://"].iter().any(|scheme| self.0.starts_with(scheme))
            || (self.0.starts_with("oci://") && self.0.contains("@sha256:"))
    }

    /// The digest that an `artifact://` reference names, if it is one.
    pub fn artifact(&self) -> Option<ContentHash> {
        let digits = self.0.strip_prefix("artifact://")?;
        digits.strip_suffix('/').unwrap_or(digits).parse().ok()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        const WHAT: &str = "content reference";
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(ParseError::new(WHAT, format!("longer than {MAX_REFERENCE_BYTES} bytes")));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(ParseError::new(WHAT, "it contains white space or control characters"));
        }
        let Some(scheme) = SCHEMES.iter().find(|scheme| text.starts_with(**scheme)) else {
            return Err(ParseError::new(WHAT, format!("expected one of {}", SCHEMES.join(", "))));
        };
        if text.len() == scheme.len() {
            return Err(ParseError::new(WHAT, format!("nothing follows {scheme}")));
        }
        let reference = Self(text.to_owned());
        if *scheme == "artifact://" && reference.artifact().is_none() {
            return Err(ParseError::new(WHAT, "artifact:// is followed by a SHA-256 of 64 hex digits"));
        }
        Ok(reference)
    }
}
serde_as_string!(Reference);

/// Serde for addresses: EIP-55 on output; on input any one case, or mixed case with a right checksum.
pub mod eip55 {
    use super::{Address, Deserialize, Deserializer, ParseError, Serializer, de};

    /// Writes the address with its EIP-55 checksum.
    pub fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    /// Reads an address.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse(&text).map_err(de::Error::custom)
    }

    /// Reads an address from text: `0x` and 40 hex digits.
    ///
    /// # Errors
    /// Not an address, or mixed case that does not match the EIP-55 checksum.
    pub fn parse(text: &str) -> Result<Address, ParseError> {
        const WHAT: &str = "address";
        let digits = text.strip_prefix("0x").ok_or_else(|| ParseError::new(WHAT, "it must begin with 0x"))?;
        let mut bytes = [0; 20];
        hex::decode_to_slice(digits, &mut bytes)
            .map_err(|_| ParseError::new(WHAT, "expected 40 hex digits after 0x"))?;
        let address = Address::from(bytes);
        let mixed =
            digits.bytes().any(|b| b.is_ascii_lowercase()) && digits.bytes().any(|b| b.is_ascii_uppercase());
        if mixed && address.to_checksum(None) != text {
            return Err(ParseError::new(WHAT, "its EIP-55 checksum is wrong: check for a typing error"));
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_take_an_optional_prefix_and_ids_require_it() {
        let digits = "ab".repeat(32);
        let hash: ContentHash = digits.parse().unwrap();
        assert_eq!(hash, format!("0x{digits}").parse().unwrap());
        assert_eq!(hash.to_string(), digits);
        assert!(digits.parse::<TaskId>().is_err());
        assert_eq!(format!("0x{digits}").parse::<TaskId>().unwrap().to_string(), format!("0x{digits}"));
        assert!("0xabc".parse::<ContentHash>().is_err());
    }

    #[test]
    fn amounts_are_decimal_and_bounded() {
        assert_eq!("10000000000000000".parse::<Amount>().unwrap().to_string(), "10000000000000000");
        for wrong in ["", "-1", "+1", "0x10", "1.5", " 1", "1e3"] {
            assert!(wrong.parse::<Amount>().is_err(), "{wrong}");
        }
        let max = U256::MAX.to_string();
        assert_eq!(max.parse::<Amount>().unwrap().0, U256::MAX);
        assert!(format!("{max}0").parse::<Amount>().is_err());
        assert_eq!(Amount(U256::from(3)).half_up(), Amount(U256::from(2)));
        assert_eq!(Amount(U256::MAX).checked_add(Amount(U256::from(1))), None);
    }

    #[test]
    fn times_are_whole_seconds_in_utc() {
        let time: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(time.unix(), 1_769_860_800);
        assert_eq!(time.to_string(), "2026-01-31T12:00:00Z");
        assert_eq!("2026-01-31T13:00:00+01:00".parse::<Timestamp>().unwrap(), time);
        for wrong in ["1769860800", "2026-01-31T12:00:00.5Z", "1969-12-31T23:59:59Z", "2026-01-31", ""] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
        let last = Timestamp::MAX;
        assert_eq!(last.to_string().parse::<Timestamp>().unwrap(), last);
        assert_eq!(last.plus(u64::MAX), last);
    }

    #[test]
    fn references_name_a_known_scheme() {
        let digest = "cd".repeat(32);
        for right in ["https://a.example/x?y=z", "ipfs://bafy/path", "file:///srv/model/"] {
            assert_eq!(right.parse::<Reference>().unwrap().to_string(), right);
        }
        let folder: Reference = format!("artifact://{digest}/").parse().unwrap();
        assert_eq!(folder.artifact().unwrap().to_string(), digest);
        for wrong in ["", "ftp://a", "https://", "artifact://zz", "https://a b", "model.bin"] {
            assert!(wrong.parse::<Reference>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_check_their_checksum_when_they_carry_one() {
        let right = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        let address = eip55::parse(right).unwrap();
        assert_eq!(address.to_string(), right);
        assert_eq!(eip55::parse(&right.to_lowercase()).unwrap(), address);
        assert!(eip55::parse("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD").is_err());
        assert!(eip55::parse("0x1234").is_err());
    }
}
