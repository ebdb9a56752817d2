//! Keys: where they are kept, and how messages are signed with them.
//!
//! A [`Wallet`] holds one secp256k1 key and signs any [`taskmarket::Message`]. On disk a key is an encrypted Web3 keystore
//! (<https://ethereum.org/developers/docs/data-structures-and-encoding/web3-secret-storage>) or a file with 64 hex digits;
//! [`default_keystore`] makes the first kind where a program is to work without being told of a key.
//!
//! No text of this crate (`Debug`, `Display`, errors) carries a key or a password.

mod default;
mod file;
mod keystore;

use std::fmt;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256};
use alloy_signer_local::PrivateKeySigner;
use secp256k1::SecretKey;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use taskmarket::{Domain, Message, Signature, Signed};

pub use default::{KEY_FILE, PASSWORD_FILE, default_keystore};

/// A key that signs. `Debug` shows its address alone.
#[derive(Clone)]
pub struct Wallet {
    signer: PrivateKeySigner,
}

impl Wallet {
    /// A new key from the operating system's randomness.
    pub fn random() -> Self {
        Self { signer: PrivateKeySigner::random_with(&mut file::OsRng) }
    }

    /// Reads a private key from text: 64 hex digits, with or without `0x`; white space around it is ignored.
    ///
    /// # Errors
    /// [`WalletError::Key`], which does not repeat the text.
    pub fn from_hex(text: &str) -> Result<Self, WalletError> {
        let text = text.trim();
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyFlaw::of(digits))?;
        let signer = PrivateKeySigner::from_bytes(&B256::from(bytes)).map_err(|_| KeyFlaw::Range)?;
        Ok(Self { signer })
    }

    /// Loads a key from a file: an encrypted Web3 keystore (JSON), or a raw key as [`Wallet::from_hex`] takes it. The password
    /// is that of the keystore; a raw key needs none. Decrypting takes a good part of a second.
    ///
    /// # Errors
    /// The file cannot be read, others than its owner may open it, it is neither kind, or the password is missing or wrong.
    pub fn load(path: &Path, password: Option<&str>) -> Result<Self, WalletError> {
        let text = file::read_private(path)?;
        if !text.trim_start().starts_with('{') {
            return Self::from_hex(&text).map_err(|_| WalletError::KeyFile { path: path.to_owned() });
        }
        let password = password.ok_or_else(|| WalletError::PasswordMissing { path: path.to_owned() })?;
        Ok(Self { signer: keystore::decrypt(path, &text, password)? })
    }

    /// Writes the key as an encrypted keystore. The file has mode 0600 from its first moment, appears whole or not at all, and
    /// is durable on return; missing folders are made with mode 0700.
    ///
    /// # Errors
    /// [`WalletError::Exists`] where there is a file already: a key is never overwritten. Else the file system's error.
    pub fn save_keystore(&self, path: &Path, password: &str) -> Result<(), WalletError> {
        file::create(path, |staged| keystore::encrypt(staged, &self.signer, password))
    }

    /// The key's address.
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// Signs a message for a domain: recoverable, low-s, `v` 27 or 28, and the same each time (RFC 6979).
    ///
    /// # Errors
    /// [`SignError::OtherSigner`] where the message names another address as its signer: nobody would take that signature.
    pub fn sign<M: Message>(&self, message: &M, domain: &Domain) -> Result<Signed<M>, SignError> {
        if let Some(named) = message.named_signer().filter(|named| *named != self.address()) {
            return Err(SignError::OtherSigner { message: M::NAME, named, own: self.address() });
        }
        let signature = self.signed(message.digest(domain), M::NAME)?;
        Ok(Signed { message: message.clone(), signature })
    }

    /// Signs the hash of a transaction of this account, as [`Wallet::sign`] signs. Messages of the market go through [`Wallet::sign`].
    ///
    /// # Errors
    /// [`SignError::Failed`]
    pub fn sign_transaction_hash(&self, hash: B256) -> Result<Signature, SignError> {
        self.signed(hash, "transaction")
    }

    /// Signs the digest of a permit by which somebody may take tokens of this account, as [`Wallet::sign`] signs.
    ///
    /// # Errors
    /// [`SignError::Failed`]
    pub fn sign_permit_digest(&self, digest: B256) -> Result<Signature, SignError> {
        self.signed(digest, "permit")
    }

    fn signed(&self, digest: B256, message: &'static str) -> Result<Signature, SignError> {
        let failed = |why: String| SignError::Failed { message, why };
        // The C library signs in half the time of the pure-Rust one, and an agent signs for every request.
        let key = SecretKey::from_secret_bytes(self.signer.to_bytes().0);
        let mut key = key.map_err(|error| failed(error.to_string()))?;
        let signature =
            RecoverableSignature::sign_ecdsa_recoverable(secp256k1::Message::from_digest(digest.0), &key);
        key.non_secure_erase();
        let (parity, compact) = signature.serialize_compact();
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&compact);
        bytes[64] = match parity {
            RecoveryId::Zero => 0,
            RecoveryId::One => 1,
            // One signature in 2^127 has an r that no v of Ethereum's can tell.
            RecoveryId::Two | RecoveryId::Three => {
                return Err(failed("its r is beyond the curve's order".to_owned()));
            }
        };
        Signature::from_bytes(bytes).map_err(|error| failed(error.to_string()))
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wallet({})", self.address())
    }
}

/// Why a key could not be loaded or kept.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// A text is not a private key.
    #[error("not a private key: {0}; expected 64 hex digits, with or without 0x")]
    Key(#[from] KeyFlaw),
    /// A file holds neither kind of key.
    #[error(
        "{} is not a key file: expected an encrypted keystore (JSON), or a private key as 64 hex digits", path.display()
    )]
    KeyFile {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than the owner may open a file with a secret.
    #[error("{} is open to other users (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key is never overwritten.
    #[error("{} exists already; a key is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A keystore needs a password and none was given.
    #[error("{} is encrypted and needs its password", path.display())]
    PasswordMissing {
        /// The keystore.
        path: PathBuf,
    },
    /// The password does not open the keystore.
    #[error("the password does not open {}", path.display())]
    PasswordWrong {
        /// The keystore.
        path: PathBuf,
    },
    /// A keystore is damaged, or of a kind that is not supported.
    #[error("{} is not a keystore that can be opened: {why}", path.display())]
    Keystore {
        /// The keystore.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What keeps a text from being a private key. It tells nothing of the text but its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFlaw {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// It has so many characters, without the 0x before them.
    #[error("it has {0} characters")]
    Length(usize),
    /// It is as long as a key, but the character at this place, from one, is none of a key's.
    #[error("character {0} is no hex digit")]
    Digit(usize),
    /// It is zero, or too large.
    #[error("it is zero, or not below the curve's order")]
    Range,
}

impl KeyFlaw {
    /// What is wrong with digits that cannot be read.
    fn of(digits: &str) -> Self {
        let wrong = digits.chars().position(|digit| !digit.is_ascii_hexdigit());
        match (digits.chars().count(), wrong) {
            (0, _) => Self::Empty,
            (64, Some(place)) => Self::Digit(place + 1),
            (length, _) => Self::Length(length),
        }
    }
}

/// Why a message was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The message names another signer.
    #[error("this {message} names {named} as its signer, but the key at hand is of {own}")]
    OtherSigner {
        /// The message's EIP-712 name.
        message: &'static str,
        /// Whom it names.
        named: Address,
        /// Whose key this is.
        own: Address,
    },
    /// The signing library failed.
    #[error("cannot sign this {message}: {why}")]
    Failed {
        /// The message's EIP-712 name, or `transaction`.
        message: &'static str,
        /// What it said.
        why: String,
    },
}
