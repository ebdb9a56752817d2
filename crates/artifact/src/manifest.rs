//! Folders as content: the manifest that lists a folder's files by hash.
//!
//! A folder is stored as one blob per file and one blob that lists them, a line
//! `path\0size\0sha256\n` for each, sorted by the bytes of the path. The SHA-256 of that list is the
//! folder's digest.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// The most files in a folder: far more than models and usual data sets have, few enough to hold in memory.
const MAX_ENTRIES: usize = 65_536;
/// The longest path in a folder, in bytes; file systems stop at 4,096 for the whole path.
const MAX_PATH_BYTES: usize = 1024;
/// The largest manifest that is read, in bytes: the most files at 200 bytes of path each.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// The list of a folder's files, sorted, without duplicates, with relative paths only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderManifest {
    entries: Vec<FolderEntry>,
}

/// One file of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderEntry {
    /// The path below the folder, with `/` between its parts.
    pub path: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The SHA-256 of the file.
    pub digest: Digest,
}

/// Why bytes are not a manifest, or files cannot be listed in one. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A line is not `path\0size\0sha256\n`.
    #[error("line {line}: not path, size and lower-case SHA-256, separated by NUL")]
    #[allow(missing_docs)]
    Line { line: usize },
    /// A path is absolute, empty, too long, or has `.`, `..`, NUL or a line break in it.
    #[error("{path:?}: not a plain relative path of at most {MAX_PATH_BYTES} bytes")]
    #[allow(missing_docs)]
    Path { path: String },
    /// The lines are not in ascending order of their paths, or a path comes twice.
    #[error("{path:?}: out of order or listed twice")]
    #[allow(missing_docs)]
    Order { path: String },
    /// A path is both a file and a folder.
    #[error("{path:?}: both a file and a folder")]
    #[allow(missing_docs)]
    FileAndFolder { path: String },
    /// More files or bytes than are read.
    #[error("more than {MAX_ENTRIES} files or {MAX_MANIFEST_BYTES} bytes of list")]
    TooLong,
    /// A file has another size than the list says.
    #[error("{path:?}: {actual} bytes long, but listed with {listed}")]
    #[allow(missing_docs)]
    Size { path: String, listed: u64, actual: u64 },
}

/// Why a folder on disk cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It holds something other than folders and regular files, such as a symbolic link.
    #[error("{}: neither a regular file nor a folder (symbolic links are not followed)", path.display())]
    #[allow(missing_docs)]
    Irregular { path: PathBuf },
    /// A name is not UTF-8.
    #[error("{}: the name is not UTF-8", path.display())]
    #[allow(missing_docs)]
    NotUtf8 { path: PathBuf },
    /// The files cannot be listed in a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Reading failed.
    #[error("{}: {source}", path.display())]
    #[allow(missing_docs)]
    Io { path: PathBuf, source: io::Error },
}

impl FolderManifest {
    /// The manifest of these files, in any order.
    ///
    /// # Errors
    /// If a path comes twice, is not a plain relative one, or is both a file and a folder, or if there are too many.
    pub fn new(mut entries: Vec<FolderEntry>) -> Result<Self, ManifestError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Self { entries };
        manifest.check()?;
        Ok(manifest)
    }

    /// Lists the folder `dir` and hashes its files. Empty folders inside it leave no trace.
    ///
    /// # Errors
    /// If there is anything but regular files and folders in it, or reading fails.
    pub async fn of_dir(dir: &Path) -> Result<Self, FolderError> {
        let root = dir.to_owned();
        let walked = tokio::task::spawn_blocking(move || walk(&root)).await;
        let paths = walked.map_err(|e| FolderError::Io { path: dir.to_owned(), source: e.into() })??;
        let mut entries = Vec::with_capacity(paths.len());
        for path in paths {
            let on_disk = dir.join(&path);
            let (digest, size) = Digest::of_file(&on_disk)
                .await
                .map_err(|source| FolderError::Io { path: on_disk, source })?;
            entries.push(FolderEntry { path, size, digest });
        }
        Ok(Self::new(entries)?)
    }

    /// Reads a manifest; only the exact bytes that [`FolderManifest::to_bytes`] writes are taken.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        let mut entries = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let line = entries.len() + 1;
            if line > MAX_ENTRIES {
                return Err(ManifestError::TooLong);
            }
            let end = rest.iter().position(|b| *b == b'\n').ok_or(ManifestError::Line { line })?;
            entries.push(parse_line(&rest[..end]).ok_or(ManifestError::Line { line })?);
            rest = &rest[end + 1..];
        }
        let manifest = Self { entries };
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as it is stored and hashed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let line = |e: &FolderEntry| format!("{}\0{}\0{}\n", e.path, e.size, e.digest);
        self.entries.iter().flat_map(|e| line(e).into_bytes()).collect()
    }

    /// The folder's digest: the SHA-256 of [`FolderManifest::to_bytes`].
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// The files, sorted by the bytes of their paths.
    pub fn entries(&self) -> &[FolderEntry] {
        &self.entries
    }

    /// The file at `path`, if the folder has it.
    pub fn get(&self, path: &str) -> Option<&FolderEntry> {
        self.entries.binary_search_by(|e| e.path.as_str().cmp(path)).ok().map(|i| &self.entries[i])
    }

    /// The invariants of the type; see the variants of [`ManifestError`].
    fn check(&self) -> Result<(), ManifestError> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(ManifestError::TooLong);
        }
        for entry in &self.entries {
            check_path(&entry.path)?;
        }
        for pair in self.entries.windows(2) {
            if pair[0].path >= pair[1].path {
                return Err(ManifestError::Order { path: pair[1].path.clone() });
            }
        }
        let files: HashSet<&str> = self.entries.iter().map(|e| e.path.as_str()).collect();
        for entry in &self.entries {
            for (slash, _) in entry.path.match_indices('/') {
                if files.contains(&entry.path[..slash]) {
                    return Err(ManifestError::FileAndFolder { path: entry.path[..slash].to_owned() });
                }
            }
        }
        Ok(())
    }
}

/// Refuses everything but a plain relative path with `/` between its parts.
pub(crate) fn check_path(path: &str) -> Result<(), ManifestError> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let fits = path.len() <= MAX_PATH_BYTES && !path.contains(['\0', '\n']);
    if fits && path.split('/').all(plain) {
        Ok(())
    } else {
        Err(ManifestError::Path { path: path.to_owned() })
    }
}

fn parse_line(line: &[u8]) -> Option<FolderEntry> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.split('\0');
    let (path, size_text, digest_text) = (fields.next()?, fields.next()?, fields.next()?);
    let size: u64 = size_text.parse().ok()?;
    let digest: Digest = digest_text.parse().ok()?;
    // One folder has one digest, so each value has one spelling.
    let exact = size.to_string() == size_text && digest.to_string() == digest_text;
    (exact && fields.next().is_none()).then(|| FolderEntry { path: path.to_owned(), size, digest })
}

/// The relative paths of all regular files below `root`.
fn walk(root: &Path) -> Result<Vec<String>, FolderError> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let on_disk = root.join(&folder);
        let failed = |source| FolderError::Io { path: on_disk.clone(), source };
        for item in std::fs::read_dir(&on_disk).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name =
                item.file_name().into_string().map_err(|_| FolderError::NotUtf8 { path: item.path() })?;
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            check_path(&path)?;
            let kind = item.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            } else {
                return Err(FolderError::Irregular { path: item.path() });
            }
            if files.len() + folders.len() > MAX_ENTRIES {
                return Err(ManifestError::TooLong.into());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str) -> FolderEntry {
        FolderEntry { path: path.into(), size: path.len() as u64, digest: Digest::of(path.as_bytes()) }
    }

    #[test]
    fn the_digest_is_over_the_sorted_lines() {
        let manifest = FolderManifest::new(vec![entry("b"), entry("a/c"), entry("a-b")]).unwrap();
        let paths: Vec<_> = manifest.entries().iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["a-b", "a/c", "b"]);
        let first = "a-b\x003\x00".to_owned() + &Digest::of(b"a-b").to_string() + "\n";
        assert!(manifest.to_bytes().starts_with(first.as_bytes()));
        assert_eq!(manifest.digest(), Digest::of(&manifest.to_bytes()));
        assert_eq!(manifest.get("a/c"), Some(&entry("a/c")));
        assert_eq!(manifest.get("a"), None);
    }

    #[test]
    fn malformed_manifests_are_refused() {
        let d = Digest::of(b"");
        let line = |path: &str| format!("{path}\x000\x00{d}\n");
        for bad in [
            line("/etc/passwd"),
            line("../x"),
            line("a/../b"),
            line("a//b"),
            line("a/"),
            line("./a"),
            line(""),
            line("a") + &line("a"),
            line("b") + &line("a"),
            line("a") + &line("a-b") + &line("a/b"),
            line("a").replace("\x000\x00", "\x0000\x00"),
            line("a").replace("\x000\x00", "\x00+0\x00"),
            line("a").replace("\x000\x00", "\x00-1\x00"),
            line("a").replace("\x000\x00", "\x0018446744073709551616\x00"),
            line("a").to_uppercase(),
            line("a").replace(&d.to_string(), &format!("0x{d}")),
            line("a").replace('\n', "\x00\n"),
            line("a").trim_end().to_owned(),
            "\n".to_owned(),
            line(&"x".repeat(MAX_PATH_BYTES + 1)),
        ] {
            assert!(FolderManifest::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(FolderManifest::parse(b"\xff\x000\x00\n").is_err());
        assert_eq!(FolderManifest::parse(b"").unwrap().entries(), []);
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let entries = |n: usize| (0..n).map(|i| entry(&format!("{i:06}"))).collect::<Vec<_>>();
        let full = FolderManifest::new(entries(MAX_ENTRIES)).unwrap();
        assert_eq!(FolderManifest::parse(&full.to_bytes()), Ok(full));
        assert_eq!(FolderManifest::new(entries(MAX_ENTRIES + 1)), Err(ManifestError::TooLong));
        let too_many = FolderManifest { entries: entries(MAX_ENTRIES + 1) }.to_bytes();
        assert_eq!(FolderManifest::parse(&too_many), Err(ManifestError::TooLong));
    }

    proptest! {
        #[test]
        fn reading_gives_back_what_was_written(
            files in prop::collection::btree_map("[a-c./é -]{1,6}", (any::<u64>(), any::<[u8; 32]>()), 0..8)
        ) {
            let files: BTreeMap<String, (u64, [u8; 32])> = files;
            let entries = files.into_iter().map(|(path, (size, d))| FolderEntry { path, size, digest: Digest(d) });
            if let Ok(manifest) = FolderManifest::new(entries.collect()) {
                prop_assert_eq!(FolderManifest::parse(&manifest.to_bytes()), Ok(manifest));
            }
        }

        #[test]
        fn what_is_read_is_written_back_alike(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(manifest) = FolderManifest::parse(&bytes) {
                prop_assert_eq!(manifest.to_bytes(), bytes);
            }
        }

        #[test]
        fn damaged_manifests_never_panic_nor_change_in_reading(at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = FolderManifest::new(vec![entry("a/b"), entry("c"), entry("é")]).unwrap().to_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(manifest) = FolderManifest::parse(&bytes) {
                prop_assert_eq!(manifest.to_bytes(), bytes);
            }
        }
    }
}
