//! Seeds and digests: 32 bytes, 64 hex digits in text.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 32 bytes, in text 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bytes32(pub [u8; 32]);

impl From<Bytes32> for String {
    fn from(bytes: Bytes32) -> Self {
        hex::encode(bytes.0)
    }
}

impl TryFrom<String> for Bytes32 {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
