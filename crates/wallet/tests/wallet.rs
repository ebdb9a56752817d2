//! Keys on disk and in memory, as a program meets them.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::fs;
use std::path::Path;

use taskmarket::{CancelTask, Domain, Timestamp, UpdateNodeStatus};
use wallet::{KEY_FILE, KeyFlaw, PASSWORD_FILE, SignError, Wallet, WalletError, default_keystore};

/// Anvil's first account: a key that everybody knows.
const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const ADDRESS: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn cancel() -> CancelTask {
    CancelTask {
        task_id: format!("0x{}", "11".repeat(32)).parse().unwrap(),
        issued_at: Timestamp::from_unix(1_800_000_000),
    }
}

#[test]
fn hex_keys_are_read_and_never_repeated_in_errors() {
    for text in [KEY.to_owned(), format!("0x{KEY}"), format!(" {KEY}\n")] {
        assert_eq!(Wallet::from_hex(&text).unwrap().address().to_string(), ADDRESS);
    }
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    for (wrong, flaw) in [
        ("", KeyFlaw::Empty),
        ("0x", KeyFlaw::Empty),
        (&KEY[1..], KeyFlaw::Length(63)),
        (&format!("0x{KEY}00"), KeyFlaw::Length(66)),
        (&"zz".repeat(32), KeyFlaw::Digit(1)),
        (&format!("{}g", &KEY[1..]), KeyFlaw::Digit(64)),
        (&"00".repeat(32), KeyFlaw::Range),
        (order, KeyFlaw::Range),
    ] {
        let error = Wallet::from_hex(wrong).unwrap_err();
        assert!(matches!(error, WalletError::Key(found) if found == flaw), "{error}");
        assert!(
            wrong.len() < 3 || !format!("{error} {error:?}").contains(wrong),
            "{error:?} repeats {wrong}"
        );
    }
}

#[test]
fn a_keystore_round_trips_and_opens_with_its_password_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys/one.json");
    let wallet = Wallet::from_hex(KEY).unwrap();
    wallet.save_keystore(&path, "right").unwrap();
    assert_eq!(Wallet::load(&path, Some("right")).unwrap().address(), wallet.address());
    assert!(matches!(Wallet::load(&path, Some("wrong")), Err(WalletError::PasswordWrong { .. })));
    assert!(matches!(Wallet::load(&path, None), Err(WalletError::PasswordMissing { .. })));
    assert!(!fs::read_to_string(&path).unwrap().contains(KEY));

    let before = fs::read(&path).unwrap();
    let error = Wallet::random().save_keystore(&path, "right").unwrap_err();
    assert!(matches!(error, WalletError::Exists { .. }));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left behind");
}

#[cfg(unix)]
#[test]
fn key_files_are_private() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let keystore = folder.path().join("keys/one.json");
    Wallet::from_hex(KEY).unwrap().save_keystore(&keystore, "right").unwrap();
    assert_eq!(mode(&keystore), 0o600);
    assert_eq!(mode(keystore.parent().unwrap()), 0o700);

    let raw = folder.path().join("raw");
    write_private(&raw, &format!("0x{KEY}\n"));
    assert_eq!(Wallet::load(&raw, None).unwrap().address().to_string(), ADDRESS);
    for (path, open) in [(&raw, 0o640), (&raw, 0o604), (&keystore, 0o644), (&keystore, 0o620)] {
        fs::set_permissions(path, fs::Permissions::from_mode(open)).unwrap();
        let error = Wallet::load(path, Some("right")).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn damaged_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good.json");
    Wallet::from_hex(KEY).unwrap().save_keystore(&good, "right").unwrap();
    let good: serde_json::Value = serde_json::from_str(&fs::read_to_string(&good).unwrap()).unwrap();
    let path = folder.path().join("bad.json");
    let refused = |text: &str| {
        write_private(&path, text);
        let error = Wallet::load(&path, Some("right")).unwrap_err().to_string();
        assert!(error.contains("bad.json"), "{error}");
    };
    for text in ["", "{", "{}", "not a key", &KEY[..63], &"0".repeat(100_000)] {
        refused(text);
    }
    let changes = [
        ("/version", serde_json::json!(1)),
        ("/crypto/cipher", serde_json::json!("aes-256-ctr")),
        ("/crypto/cipherparams/iv", serde_json::json!("00")),
        ("/crypto/cipherparams/iv", serde_json::json!("zz".repeat(16))),
        ("/crypto/ciphertext", serde_json::json!("")),
        ("/crypto/mac", serde_json::json!("")),
        ("/crypto/kdfparams/dklen", serde_json::json!(16)),
        ("/crypto/kdfparams/n", serde_json::json!(0)),
        ("/crypto/kdfparams/n", serde_json::json!(8191)),
        ("/crypto/kdfparams/n", serde_json::json!(1_u64 << 31)),
        ("/crypto/kdfparams/r", serde_json::json!(0)),
        ("/crypto/kdfparams/r", serde_json::json!(u32::MAX)),
        ("/crypto/kdfparams/p", serde_json::json!(u64::MAX)),
        ("/crypto/kdfparams", serde_json::json!({"c": 0, "dklen": 32, "prf": "hmac-sha256", "salt": "00"})),
    ];
    for (pointer, value) in changes {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        refused(&bad.to_string());
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(Wallet::load(&path, None), Err(WalletError::KeyFile { .. })));
    let missing = Wallet::load(&folder.path().join("missing"), None).unwrap_err();
    assert!(matches!(missing, WalletError::File { action: "read", .. }));
}

#[test]
fn the_default_key_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let (first, created) = default_keystore(folder.path(), None).unwrap();
    assert!(created);
    let (again, created) = default_keystore(folder.path(), None).unwrap();
    assert!(!created);
    assert_eq!(first.address(), again.address());
    #[cfg(unix)]
    for file in [KEY_FILE, PASSWORD_FILE] {
        assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
    }

    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("wallet")).unwrap();
    fs::copy(folder.path().join(KEY_FILE), other.path().join(KEY_FILE)).unwrap();
    assert!(matches!(default_keystore(other.path(), None), Err(WalletError::PasswordMissing { .. })));
    assert!(!other.path().join(PASSWORD_FILE).exists());
}

#[test]
fn a_password_that_the_operator_gives_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (first, created) = default_keystore(folder.path(), Some("given")).unwrap();
    assert!(created && !folder.path().join(PASSWORD_FILE).exists());
    assert_eq!(default_keystore(folder.path(), Some("given")).unwrap().0.address(), first.address());
    let wrong = default_keystore(folder.path(), Some("another")).unwrap_err();
    assert!(matches!(wrong, WalletError::PasswordWrong { .. }));
}

#[test]
fn first_users_at_once_end_with_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let start = std::sync::Barrier::new(6);
    let made: Vec<_> = std::thread::scope(|scope| {
        let users: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    default_keystore(folder.path(), None).unwrap()
                })
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|(_, created)| *created).count(), 1);
    assert!(made.iter().all(|(wallet, _)| wallet.address() == made[0].0.address()));
}

#[test]
fn signatures_verify_and_name_the_right_signer() {
    let wallet = Wallet::random();
    let verified = wallet.sign(&cancel(), &Domain::UNSETTLED).unwrap().verify(&Domain::UNSETTLED).unwrap();
    assert_eq!(verified.signer(), wallet.address());

    let mut status = UpdateNodeStatus {
        provider: wallet.address(),
        node_id: "0x0101010101010101010101010101010101010101010101010101010101010101".parse().unwrap(),
        status: taskmarket::NodeStatus::Draining,
        issued_at: Timestamp::from_unix(1_800_000_000),
    };
    wallet.sign(&status, &Domain::UNSETTLED).unwrap().verify(&Domain::UNSETTLED).unwrap();
    status.provider = Wallet::random().address();
    let error = wallet.sign(&status, &Domain::UNSETTLED).unwrap_err();
    assert!(matches!(error, SignError::OtherSigner { message: "UpdateNodeStatus", .. }));
}

#[test]
fn debug_shows_the_address_alone() {
    let shown = format!("{:?}", Wallet::from_hex(KEY).unwrap());
    assert!(shown.contains(ADDRESS));
    assert!(!shown.contains(KEY) && !shown.to_lowercase().contains(&KEY[..8]), "{shown}");
}
