//! The encrypted form of a key on disk: Web3 Secret Storage, version 3.

use std::path::Path;

use alloy_signer_local::PrivateKeySigner;
use serde::Deserialize;

use crate::WalletError;
use crate::file::OsRng;

/// The most memory that opening a keystore may take, in bytes: twice what geth's standard parameters take.
const MAX_SCRYPT_BYTES: u64 = 512 * 1024 * 1024;
/// The most passes that opening a keystore may take: ten times what is usual.
const MAX_PBKDF2_ROUNDS: u64 = 10_000_000;

/// What is checked of a keystore before it is opened. The library that opens it trusts these: a damaged file would make it panic
/// or take all memory.
#[derive(Deserialize)]
struct Shape {
    version: u64,
    crypto: Crypto,
}

#[derive(Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    kdfparams: KdfParams,
}

#[derive(Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum KdfParams {
    Scrypt { dklen: u64, n: u64, p: u64, r: u64 },
    Pbkdf2 { dklen: u64, c: u64, prf: String },
}

impl Shape {
    fn check(&self) -> Result<(), String> {
        if self.version != 3 {
            return Err(format!("its version is {}, expected 3", self.version));
        }
        if self.crypto.cipher != "aes-128-ctr" {
            return Err("its cipher is not aes-128-ctr".to_owned());
        }
        if self.crypto.cipherparams.iv.len() != 32 || self.crypto.ciphertext.len() != 64 {
            return Err("its iv has not 16 bytes, or its ciphertext not 32".to_owned());
        }
        let dklen = match &self.crypto.kdfparams {
            KdfParams::Scrypt { dklen, n, p, r } => {
                let bytes = n.saturating_mul(*r).saturating_mul(128);
                if !n.is_power_of_two() || bytes.saturating_mul(*p) > MAX_SCRYPT_BYTES {
                    return Err(format!("its scrypt parameters n={n} r={r} p={p} are out of bounds"));
                }
                dklen
            }
            KdfParams::Pbkdf2 { dklen, c, prf } => {
                if prf != "hmac-sha256" || *c == 0 || *c > MAX_PBKDF2_ROUNDS {
                    return Err("its pbkdf2 parameters are out of bounds".to_owned());
                }
                dklen
            }
        };
        if *dklen == 32 { Ok(()) } else { Err(format!("its dklen is {dklen}, expected 32")) }
    }
}

/// Opens the keystore at `path`, whose text is `text`.
pub(crate) fn decrypt(path: &Path, text: &str, password: &str) -> Result<PrivateKeySigner, WalletError> {
    let refused = |why| WalletError::Keystore { path: path.to_owned(), why };
    let shape: Shape = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    shape.check().map_err(refused)?;
    PrivateKeySigner::decrypt_keystore(path, password).map_err(|error| match error.to_string() {
        why if why == MAC_MISMATCH => WalletError::PasswordWrong { path: path.to_owned() },
        why => refused(why),
    })
}

/// How the library says that the password is wrong; its error type is not exported.
const MAC_MISMATCH: &str = "Mac Mismatch";

/// Writes a keystore over the private file at `staged`, which keeps its mode.
pub(crate) fn encrypt(staged: &Path, signer: &PrivateKeySigner, password: &str) -> Result<(), WalletError> {
    let failed = |why: String| WalletError::File {
        action: "write",
        path: staged.to_owned(),
        source: std::io::Error::other(why),
    };
    let folder = staged.parent().ok_or_else(|| failed("it has no folder".to_owned()))?;
    let name = staged
        .file_name()
        .and_then(std::ffi::OsStr::to_str)
        .ok_or_else(|| failed("its name is not text".to_owned()))?;
    PrivateKeySigner::encrypt_keystore(folder, &mut OsRng, signer.to_bytes(), password, Some(name))
        .map(|_| ())
        .map_err(|error| failed(error.to_string()))
}
