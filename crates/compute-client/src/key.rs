//! The user's key: where it is found, and who makes it.

use std::io::{ErrorKind, IsTerminal as _};
use std::path::PathBuf;

use daemon::{Secret, default_data_dir, read_secret_file};
use wallet::{KEY_FILE, PASSWORD_FILE, Wallet, WalletError, default_keystore};

use crate::cli::Global;
use crate::failure::{Failure, Outcome};
use crate::ui::Ui;

/// The variable that holds a keystore's password where no flag names a file.
const PASSWORD_VARIABLE: &str = "ZORAI_KEY_PASSWORD";
/// The name of this program's folder below the data root.
const PROGRAM: &str = "client";

/// Whether a missing default key is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfMissing {
    /// It is made, and said so.
    Make,
    /// It is an error.
    Refuse,
}

/// Where the default key lies.
pub(crate) fn default_path() -> PathBuf {
    default_data_dir(PROGRAM).join(KEY_FILE)
}

/// Loads the user's key: `--key-file` or `ZORAI_KEY_FILE`, else the default keystore.
pub(crate) async fn load(global: &Global, ui: &Ui, if_missing: IfMissing) -> Outcome<Wallet> {
    let password = given_password(global)?;
    if let Some(path) = &global.key_file {
        let path = path.clone();
        return match blocking(path.clone(), password).await {
            Err(WalletError::PasswordMissing { .. }) if std::io::stdin().is_terminal() => {
                let password = ask(&format!("Password of {}: ", path.display()))?;
                blocking(path, Some(password)).await.map_err(refused)
            }
            other => other.map_err(refused),
        };
    }
    if if_missing == IfMissing::Refuse && !default_path().exists() {
        return Err(Failure::usage(format_args!(
            "there is no key: {} does not exist",
            default_path().display()
        ))
        .hint("give a key, of a task the one that published it: --key-file FILE, or ZORAI_KEY_FILE")
        .hint("or make one: zorai-compute wallet new --out FILE"));
    }
    let folder = default_data_dir(PROGRAM);
    let kept = folder.join(PASSWORD_FILE);
    let is_given = password.is_some();
    let work = move || default_keystore(&folder, password.as_ref().map(Secret::expose));
    let (wallet, made) =
        tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?.map_err(refused)?;
    if made {
        let password = if is_given { "you gave".to_owned() } else { format!("in {}", kept.display()) };
        let (address, path) = (wallet.address(), default_path());
        ui.say(format_args!(
            "made a key for you: {address} in {}, with the password {password}",
            path.display()
        ));
    }
    Ok(wallet)
}

/// The password for a new keystore: as given, else asked for twice.
pub(crate) fn new_password(global: &Global) -> Outcome<Secret> {
    if let Some(password) = given_password(global)? {
        return Ok(password);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("a keystore needs a password")
            .hint("give --key-password-file FILE, or set ZORAI_KEY_PASSWORD"));
    }
    let first = ask("Password for the new keystore: ")?;
    if !first.matches(ask("Once more: ")?.expose()) {
        return Err(Failure::usage("the two passwords differ"));
    }
    Ok(first)
}

/// Reads a secret from the terminal without showing it, or a line of standard input.
pub(crate) fn ask(prompt: &str) -> Outcome<Secret> {
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(prompt).map(Secret::new).map_err(Failure::usage);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Failure::usage)?;
    Ok(Secret::new(line.trim_end_matches(['\r', '\n'])))
}

fn given_password(global: &Global) -> Outcome<Option<Secret>> {
    match &global.key_password_file {
        Some(file) => read_secret_file(file).map(Some).map_err(Failure::usage),
        None => Ok(std::env::var(PASSWORD_VARIABLE).ok().filter(|text| !text.is_empty()).map(Secret::new)),
    }
}

/// Opening a keystore takes a good part of a second of computing.
async fn blocking(path: PathBuf, password: Option<Secret>) -> Result<Wallet, WalletError> {
    let shown = path.clone();
    let work = move || Wallet::load(&path, password.as_ref().map(Secret::expose));
    match tokio::task::spawn_blocking(work).await {
        Ok(loaded) => loaded,
        Err(error) => {
            Err(WalletError::File { action: "read", path: shown, source: std::io::Error::other(error) })
        }
    }
}

fn refused(error: WalletError) -> Failure {
    let failure = Failure::usage(&error);
    match error {
        WalletError::PasswordMissing { .. } | WalletError::PasswordWrong { .. } => {
            failure.hint("give --key-password-file FILE, or set ZORAI_KEY_PASSWORD")
        }
        WalletError::File { ref source, .. } if source.kind() == ErrorKind::NotFound => failure
            .hint("check --key-file and ZORAI_KEY_FILE")
            .hint("or make a key there: zorai-compute wallet new --out FILE"),
        WalletError::Key(_)
        | WalletError::KeyFile { .. }
        | WalletError::File { .. }
        | WalletError::OpenToOthers { .. }
        | WalletError::Exists { .. }
        | WalletError::Keystore { .. } => failure,
    }
}
