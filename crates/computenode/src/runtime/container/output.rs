//! `/out`: watched while the program writes into it, and taken as the result once it has ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::runtime::{RunCode, RunError, blocking};

/// The most files and folders that a program may leave.
const MAX_ENTRIES: u64 = 100_000;

/// The shortest pause between two looks at what a program has written.
const LOOK: Duration = Duration::from_millis(50);

/// How much longer than a look the pause after it is.
const PAUSE_PER_LOOK: u32 = 10;

/// The size of a record of a tar.
const TAR_RECORD: u64 = 512;

/// Ends, with the reason, once more than `bytes` are in `folder`.
pub(super) async fn watch(folder: PathBuf, bytes: u64) -> RunError {
    loop {
        let started = Instant::now();
        let place = folder.clone();
        if let Err(error) = blocking(move || check(&place, bytes)).await {
            return error;
        }
        tokio::time::sleep(LOOK.max(started.elapsed() * PAUSE_PER_LOOK)).await;
    }
}

/// An error if `folder` holds more than `bytes`, or too many files.
pub(super) fn check(folder: &Path, bytes: u64) -> Result<(), RunError> {
    let (mut used, mut entries) = (0u64, 0u64);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Some(list) = there(fs::read_dir(&folder))? else { continue };
        for entry in list {
            let Some(entry) = there(entry)? else { continue };
            let Some(metadata) = there(entry.metadata())? else { continue };
            // What is allocated, so that holes are no bytes.
            used = used.saturating_add(metadata.blocks().saturating_mul(512));
            entries += 1;
            if used > bytes {
                let reason = format!("the program wrote more than {bytes} bytes into /out");
                return Err(RunError::new(RunCode::OutOfDisk, reason));
            }
            if entries > MAX_ENTRIES {
                let reason = format!("the program made more than {MAX_ENTRIES} files in /out");
                return Err(RunError::new(RunCode::OutOfDisk, reason));
            }
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

/// What was looked at, unless a running program has removed it meanwhile: then it takes no room. A program that hides
/// what it writes, by modes or by paths that are too long, could write without a bound.
fn there<T>(looked: io::Result<T>) -> Result<Option<T>, RunError> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidFilename) =>
        {
            let reason = format!("a folder in /out cannot be looked into: {error}");
            Err(RunError::new(RunCode::BadOutput, reason))
        }
        Err(error) => Err(RunError::new(RunCode::Internal, format!("cannot look into /out: {error}"))),
    }
}

/// The result in `folder`, which nobody writes into any more: its one file, or a tar of several, made at `archive`.
/// `None` if there is nothing in it.
pub(super) fn collect(folder: &Path, archive: &Path, limit: u64) -> Result<Option<PathBuf>, RunError> {
    let failed =
        |error: io::Error| RunError::new(RunCode::Internal, format!("cannot read the result: {error}"));
    let entries = list(folder)?;
    match entries.as_slice() {
        [] => Ok(None),
        [one] if !one.folder => {
            if one.bytes > limit {
                return Err(RunError::output_too_large(limit));
            }
            Ok(Some(folder.join(&one.path)))
        }
        several => {
            let records = |bytes: u64| bytes.div_ceil(TAR_RECORD).saturating_mul(TAR_RECORD);
            let total = several.iter().fold(2 * TAR_RECORD, |total, entry| {
                total.saturating_add(TAR_RECORD).saturating_add(records(entry.bytes))
            });
            if total > limit {
                return Err(RunError::output_too_large(limit));
            }
            pack(folder, several, archive).map_err(failed)?;
            // Long names take records of their own.
            if fs::metadata(archive).map_err(failed)?.len() > limit {
                return Err(RunError::output_too_large(limit));
            }
            Ok(Some(archive.to_owned()))
        }
    }
}

/// What a program left.
struct Entry {
    /// Below the folder.
    path: PathBuf,
    folder: bool,
    executable: bool,
    bytes: u64,
}

/// All that is in `root`, in the order of its paths. It can be read afterwards, whatever its modes were.
fn list(root: &Path) -> Result<Vec<Entry>, RunError> {
    let failed =
        |error: io::Error| RunError::new(RunCode::Internal, format!("cannot read the result: {error}"));
    let mut entries = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = folder.join(entry.file_name());
            let metadata = entry.metadata().map_err(failed)?;
            let kind = metadata.file_type();
            if !kind.is_file() && !kind.is_dir() {
                let what = if kind.is_symlink() { "a symbolic link" } else { "a device, a pipe or a socket" };
                let reason = format!("/out/{} is {what}; a result is made of files", path.display());
                return Err(RunError::new(RunCode::BadOutput, reason));
            }
            let mode = if kind.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).map_err(failed)?;
            if kind.is_dir() {
                folders.push(path.clone());
            }
            entries.push(Entry {
                path,
                folder: kind.is_dir(),
                executable: kind.is_file() && metadata.mode() & 0o111 != 0,
                bytes: if kind.is_file() { metadata.len() } else { 0 },
            });
        }
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(entries)
}

/// Packs `entries` so that the same files always make the same bytes.
fn pack(root: &Path, entries: &[Entry], archive: &Path) -> io::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::new(File::create(archive)?));
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(entry.bytes);
        header.set_mode(if entry.folder || entry.executable { 0o755 } else { 0o644 });
        if entry.folder {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, entry.path.join(""), io::empty())?;
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            let file = File::open(root.join(&entry.path))?;
            builder.append_data(&mut header, &entry.path, io::Read::take(file, entry.bytes))?;
        }
    }
    builder.into_inner()?.into_inner()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(error: RunError) -> RunCode {
        error.code
    }

    #[test]
    fn one_file_is_the_result_and_several_are_a_tar_that_is_always_the_same() {
        let place = tempfile::tempdir().unwrap();
        let (out, archive) = (place.path().join("out"), place.path().join("tar"));
        fs::create_dir(&out).unwrap();
        assert_eq!(collect(&out, &archive, 1 << 20).unwrap(), None);
        fs::write(out.join("b"), "two").unwrap();
        assert_eq!(collect(&out, &archive, 3).unwrap(), Some(out.join("b")));
        assert_eq!(code(collect(&out, &archive, 2).unwrap_err()), RunCode::OutputTooLarge);

        fs::create_dir_all(out.join("a/deep")).unwrap();
        fs::write(out.join("a/deep").join("n".repeat(200)), "one").unwrap();
        fs::set_permissions(out.join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(collect(&out, &archive, 1 << 20).unwrap(), Some(archive.clone()));
        let first = fs::read(&archive).unwrap();
        let other = place.path().join("other");
        fs::create_dir_all(other.join("a/deep")).unwrap();
        fs::write(other.join("a/deep").join("n".repeat(200)), "one").unwrap();
        fs::write(other.join("b"), "two").unwrap();
        fs::set_permissions(other.join("b"), fs::Permissions::from_mode(0o640)).unwrap();
        collect(&other, &archive, 1 << 20).unwrap().unwrap();
        assert_eq!(fs::read(&archive).unwrap(), first);
        let mut names = Vec::new();
        for entry in tar::Archive::new(first.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            names.push(entry.path().unwrap().display().to_string());
        }
        assert_eq!(names, ["a/", "a/deep/", &format!("a/deep/{}", "n".repeat(200)), "b"]);
        assert_eq!(code(collect(&other, &archive, 1024).unwrap_err()), RunCode::OutputTooLarge);
    }

    #[test]
    fn links_and_pipes_are_no_results() {
        let place = tempfile::tempdir().unwrap();
        let archive = place.path().join("tar");
        let out = place.path().join("out");
        fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", out.join("x")).unwrap();
        assert_eq!(code(collect(&out, &archive, 1 << 20).unwrap_err()), RunCode::BadOutput);
        fs::remove_file(out.join("x")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(out.join("x")).unwrap();
        assert_eq!(code(collect(&out, &archive, 1 << 20).unwrap_err()), RunCode::BadOutput);
    }

    #[test]
    fn what_cannot_be_looked_into_is_no_result() {
        let place = tempfile::tempdir().unwrap();
        let hidden = place.path().join("hidden");
        let code = |mode: u32| {
            fs::create_dir(&hidden).unwrap();
            fs::write(hidden.join("file"), "content").unwrap();
            fs::set_permissions(&hidden, fs::Permissions::from_mode(mode)).unwrap();
            let place = place.path().to_owned();
            // Without root's rights, which belong to each thread by itself.
            let looking = std::thread::spawn(move || {
                let none = rustix::thread::CapabilitySet::empty();
                let sets =
                    rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
                rustix::thread::set_capabilities(None, sets).unwrap();
                check(&place, 1 << 20)
            });
            let looked = looking.join().unwrap();
            fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).unwrap();
            fs::remove_dir_all(&hidden).unwrap();
            looked.map_err(|error| error.code)
        };
        assert_eq!(code(0o700), Ok(()));
        for mode in [0o300, 0o600, 0o000] {
            assert_eq!(code(mode), Err(RunCode::BadOutput), "{mode:o}");
        }
        check(&place.path().join("gone"), 1).unwrap();
    }

    #[test]
    fn too_much_is_seen() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("a")).unwrap();
        fs::write(place.path().join("a/b"), vec![1; 1 << 20]).unwrap();
        check(place.path(), 2 << 20).unwrap();
        assert_eq!(code(check(place.path(), 1 << 19).unwrap_err()), RunCode::OutOfDisk);
        let holes = File::create(place.path().join("holes")).unwrap();
        holes.set_len(1 << 40).unwrap();
        check(place.path(), 2 << 20).unwrap();
    }
}
