//! Files that only their owner may read, written so that a crash leaves the old content or the new, never a part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `bytes` to `path`, replacing what is there. The file has mode 0600 from its first moment, and missing
/// parent folders are made with 0700. When this returns, the content is durable.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = Staged::write(path, bytes)?;
    fs::rename(&staged.path, path)?;
    sync_folder(parent(path))
}

/// As [`create`], but fails with [`io::ErrorKind::AlreadyExists`] where `path` exists: of several processes that
/// try at once, exactly one wins.
pub fn create_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = Staged::write(path, bytes)?;
    fs::hard_link(&staged.path, path)?;
    drop(staged);
    sync_folder(parent(path))
}

/// A finished file under a temporary name, which is removed when it is not renamed.
struct Staged {
    path: PathBuf,
}

impl Staged {
    fn write(target: &Path, bytes: &[u8]) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);

        let Some(name) = target.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
        };
        create_folders(parent(target))?;
        let mut staged_name = std::ffi::OsString::from(".");
        staged_name.push(name);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        staged_name.push(format!(".{}.{count}.tmp", std::process::id()));

        let path = target.with_file_name(staged_name);
        // A leftover of a crashed process that had the same number.
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = open_private(&path)?;
        let staged = Self { path };
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(staged)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove, and nothing to report.
        let _ = fs::remove_file(&self.path);
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn create_folders(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Makes a rename in `folder` durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/key");
        create(&path, b"one").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&folder.path().join("a")), 0o700);
        assert_eq!(mode(&folder.path().join("a/b")), 0o700);
    }

    #[test]
    fn create_replaces_and_create_new_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create_new(&path, b"one").unwrap();
        assert_eq!(create_new(&path, b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        create(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn of_many_writers_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let winners = std::thread::scope(|scope| {
            let path = &path;
            let writers: Vec<_> =
                (0..8u8).map(|n| scope.spawn(move || create_new(path, &[n; 32]).is_ok())).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(winners, 1);
    }
}
