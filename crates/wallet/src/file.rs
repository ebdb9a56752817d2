//! Files with secrets: read only where nobody else may, written whole and never over another.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use tempfile::NamedTempFile;

use crate::WalletError;

/// The operating system's randomness, in the version of the trait that the signing library takes.
pub(crate) use alloy_signer::k256::elliptic_curve::rand_core::OsRng;

/// More than any keystore or password has, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Reads a text that only its owner may read.
pub(crate) fn read_private(path: &Path) -> Result<String, WalletError> {
    let failed = |source| WalletError::File { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    refuse_open_to_others(path, &file.metadata().map_err(failed)?)?;
    let mut text = String::new();
    match file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text) {
        Ok(read) if read as u64 <= MAX_FILE_BYTES => Ok(text),
        // Too long, or not text.
        Ok(_) => Err(WalletError::KeyFile { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(WalletError::KeyFile { path: path.to_owned() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Creates `path` with what `write` puts into a private file beside it. Of several processes that try at once, one wins and the
/// others get [`WalletError::Exists`].
pub(crate) fn create(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), WalletError>,
) -> Result<(), WalletError> {
    let failed = |source| WalletError::File { action: "write", path: path.to_owned(), source };
    let exists = || WalletError::Exists { path: path.to_owned() };
    if path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    create_folders(folder).map_err(failed)?;
    // The temporary file has mode 0600 from the start, and goes away unless it is persisted.
    let staged = NamedTempFile::new_in(folder).map_err(failed)?;
    write(staged.path())?;
    staged.as_file().sync_all().map_err(failed)?;
    staged.persist_noclobber(path).map_err(|error| {
        if error.error.kind() == io::ErrorKind::AlreadyExists { exists() } else { failed(error.error) }
    })?;
    sync_folder(folder).map_err(failed)
}

#[cfg(unix)]
fn refuse_open_to_others(path: &Path, metadata: &fs::Metadata) -> Result<(), WalletError> {
    use std::os::unix::fs::PermissionsExt;

    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(WalletError::OpenToOthers { path: path.to_owned(), mode })
}

#[cfg(not(unix))]
fn refuse_open_to_others(_: &Path, _: &fs::Metadata) -> Result<(), WalletError> {
    Ok(())
}

fn create_folders(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Makes the new name durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
