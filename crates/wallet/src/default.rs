//! The key that a program makes for itself where it is told of none.

use std::fs;
use std::path::Path;

use alloy_signer::k256::elliptic_curve::rand_core::RngCore;

use crate::file::{self, OsRng};
use crate::{Wallet, WalletError};

/// The default key, under a program's data folder.
pub const KEY_FILE: &str = "wallet/key.json";
/// The default key's password, under a program's data folder, where the operator gives none.
pub const PASSWORD_FILE: &str = "wallet/password";

/// Loads the default key at `<dir>/wallet/key.json`, making it on first use; the answer says whether this call made it.
///
/// It is encrypted with `password`, or else with what `<dir>/wallet/password` holds (mode 0600), which is made from randomness on
/// first use: so the key file alone is useless when copied. Processes that do this at once end with the same key.
///
/// # Errors
/// As [`Wallet::load`] and [`Wallet::save_keystore`]; [`WalletError::PasswordMissing`] where there is a key, no password file and
/// no password given.
pub fn default_keystore(dir: &Path, password: Option<&str>) -> Result<(Wallet, bool), WalletError> {
    let key = dir.join(KEY_FILE);
    let password = match password {
        Some(password) => password.to_owned(),
        None => kept_password(&dir.join(PASSWORD_FILE), &key)?,
    };
    if key.exists() {
        return Ok((Wallet::load(&key, Some(&password))?, false));
    }
    let wallet = Wallet::random();
    match wallet.save_keystore(&key, &password) {
        Ok(()) => Ok((wallet, true)),
        // Another process was first: its key counts.
        Err(WalletError::Exists { .. }) => Ok((Wallet::load(&key, Some(&password))?, false)),
        Err(error) => Err(error),
    }
}

/// Reads the password kept in `path`, making it first where there is neither password nor key.
fn kept_password(path: &Path, key: &Path) -> Result<String, WalletError> {
    if !path.exists() {
        // A key without its password was encrypted with one that the operator gave. The second look is for a process that made
        // both since the first.
        if key.exists() && !path.exists() {
            return Err(WalletError::PasswordMissing { path: key.to_owned() });
        }
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        let made = file::create(path, |staged| {
            fs::write(staged, hex::encode(bytes)).map_err(|source| WalletError::File {
                action: "write",
                path: path.to_owned(),
                source,
            })
        });
        match made {
            Ok(()) | Err(WalletError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let password = file::read_private(path)?.trim().to_owned();
    if password.is_empty() {
        return Err(WalletError::PasswordMissing { path: key.to_owned() });
    }
    Ok(password)
}
