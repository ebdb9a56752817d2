//! Secrets: kept out of logs, read from files that only their owner can read, compared in constant time.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use subtle::ConstantTimeEq;

/// The largest secret file that is read, in bytes: far above any key or token.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A text that must not be seen: its `Debug` and `Display` say `[redacted]`.
///
/// It parses from any text, so that it can be the type of a clap argument.
#[derive(Clone)]
pub struct Secret(String);

/// Why a secret file is not used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file cannot be read.
    #[error("cannot read the secret file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Others than the owner may read the file.
    #[error("the secret file {path} is open to others (mode {mode:04o})\nhint: chmod 600 {path}", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no secret: it is empty, too large, or not UTF-8 text.
    #[error("the secret file {} holds no secret: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself. Keep it away from logs, errors and command lines.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret, in a time that does not depend on where they differ.
    pub fn matches(&self, candidate: &str) -> bool {
        constant_time_eq(self.0.as_bytes(), candidate.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text))
    }
}

/// Whether two byte strings are equal, in a time that depends on their lengths alone.
pub fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

/// Reads the secret that `path` holds, without the one newline that editors put at the end.
///
/// On Unix a file that its group or others may read, write or execute is refused.
pub fn read_secret_file(path: &Path) -> Result<Secret, SecretFileError> {
    let failed = |source| SecretFileError::Read { path: path.to_owned(), source };
    let content = |reason| SecretFileError::Content { path: path.to_owned(), reason };

    let file = File::open(path).map_err(failed)?;
    // The opened file is asked, not the path, so that it cannot be exchanged in between.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(content("it is not a plain file"));
    }
    check_mode(path, &metadata)?;

    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidData {
            content("it is not UTF-8 text")
        } else {
            failed(error)
        }
    })?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(content("it is too large"));
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() { Err(content("it is empty")) } else { Ok(Secret(text)) }
}

#[cfg(unix)]
fn check_mode(path: &Path, metadata: &std::fs::Metadata) -> Result<(), SecretFileError> {
    use std::os::unix::fs::PermissionsExt;

    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(SecretFileError::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_mode(_path: &Path, _metadata: &std::fs::Metadata) -> Result<(), SecretFileError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_file;

    #[test]
    fn a_secret_shows_itself_only_when_asked() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
        assert_eq!(secret.expose(), "hunter2");
        assert!(secret.matches("hunter2"));
        assert!(!secret.matches("hunter"));
        assert!(!secret.matches("hunter3"));
    }

    #[test]
    fn one_newline_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (stored, read) in [("abc", "abc"), ("abc\n", "abc"), ("abc\r\n", "abc"), (" abc\n\n", " abc\n")] {
            private_file::create(&path, stored.as_bytes()).unwrap();
            assert_eq!(read_secret_file(&path).unwrap().expose(), read);
        }
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(matches!(read_secret_file(&path), Err(SecretFileError::Read { .. })));
        assert!(matches!(read_secret_file(folder.path()), Err(SecretFileError::Content { .. })));
        let large = vec![b'a'; MAX_FILE_BYTES as usize + 1];
        for bytes in [b"".as_slice(), b"\n", b"\xff\xfe", &large] {
            private_file::create(&path, bytes).unwrap();
            assert!(matches!(read_secret_file(&path), Err(SecretFileError::Content { .. })));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_open_to_others_is_refused_with_a_hint() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        private_file::create(&path, b"abc").unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = read_secret_file(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
    }
}
