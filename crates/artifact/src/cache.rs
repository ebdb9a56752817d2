//! A store that is a cache: what was used longest ago goes first, what is in use stays, and after a crash nothing is believed
//! unread. All of it holds between processes too: it rests on locks of the file system, which end with the process that holds them.
//!
//! - `turn` is locked while files are taken into use or removed, so that nothing goes that was just taken.
//! - `in-use/*` lists files that somebody reads, and is locked as long as they do.
//! - `lives/*` is locked by each process that has the store open, and removed when it closes it in good order. One that is found
//!   unlocked tells of a crash.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::blobs::{BlobStore, blocking, list_blobs};
use crate::digest::Digest;

const IN_USE: &str = "in-use";
const LIVES: &str = "lives";
/// How long a turn is waited for. It is held for one listing of the store at most.
const TURN_PATIENCE: Duration = Duration::from_secs(30);
const TURN_PAUSE: Duration = Duration::from_millis(5);

/// Files that stay in the store until this is dropped, or its process ends.
#[derive(Debug)]
pub struct Kept {
    _list: Locked,
}

/// What [`BlobStore::trim`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// The number of blobs that were removed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of the blobs that are left; above the limit only where they are in use.
    pub left: u64,
}

/// What [`BlobStore::scrub`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrubbed {
    /// The number of blobs that were read.
    pub blobs: u64,
    /// How many of them were not what their names say, and were removed.
    pub removed: u64,
}

/// A process that has the store open.
#[derive(Debug)]
pub(crate) struct Life {
    file: Option<Locked>,
    /// After a crash: the blobs that were read since, and are what their names say. `None` when there is no doubt.
    doubt: Mutex<Option<HashSet<Digest>>>,
}

/// A file that this process holds locked, removed in the end.
#[derive(Debug)]
struct Locked {
    path: PathBuf,
    file: File,
}

impl BlobStore {
    /// Says that the blob was used just now, so that [`BlobStore::trim`] takes others before it.
    pub async fn touch(&self, digest: &Digest) -> io::Result<()> {
        let path = self.path(digest);
        blocking(move || File::open(path)?.set_modified(SystemTime::now())).await
    }

    /// Keeps `files` from being removed by [`BlobStore::trim`], of this or another process; `None` says that one of them has gone
    /// already. Files outside the store only have to exist.
    pub async fn keep(&self, files: &[PathBuf]) -> io::Result<Option<Kept>> {
        let (root, files) = (self.root().to_owned(), files.to_owned());
        blocking(move || keep(&root, &files)).await
    }

    /// Removes the blobs that were used longest ago until the others take no more than `limit` bytes, except those that are kept.
    /// A folder of which a file is removed is fetched again when it is needed.
    pub async fn trim(&self, limit: u64) -> io::Result<Trimmed> {
        let root = self.root().to_owned();
        blocking(move || Found::in_store(&root)?.trim(&root, limit)).await
    }

    /// As [`make_room`].
    pub(crate) async fn make_room(&self, limit: u64, needed: u64, wanted: u64) -> io::Result<Option<u64>> {
        let root = self.root().to_owned();
        blocking(move || make_room(&root, limit, needed, wanted)).await
    }

    /// Whether a process that had the store open ended without closing it. Then each blob is read and checked when it is first
    /// used, and removed if it is not what its name says.
    pub fn is_in_doubt(&self) -> bool {
        self.life().doubt.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Reads all blobs, removes those that are not what their names say, and so ends the doubt after a crash.
    pub async fn scrub(&self) -> io::Result<Scrubbed> {
        let mut done = Scrubbed::default();
        for (digest, _) in self.list().await? {
            done.blobs += 1;
            if !self.is_sound(&digest).await? {
                done.removed += 1;
            }
        }
        *self.life().doubt.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(done)
    }

    /// Whether the blob may be believed to be what its name says; if it is not, it is removed.
    pub(crate) async fn is_trusted(&self, digest: &Digest) -> io::Result<bool> {
        let trusted = match &*self.life().doubt.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(sound) => sound.contains(digest),
            None => true,
        };
        Ok(trusted || self.is_sound(digest).await?)
    }

    /// The blob was written by this process, so it is what its name says.
    pub(crate) fn trust(&self, digest: Digest) {
        if let Some(sound) = &mut *self.life().doubt.lock().unwrap_or_else(PoisonError::into_inner) {
            sound.insert(digest);
        }
    }

    async fn is_sound(&self, digest: &Digest) -> io::Result<bool> {
        match Digest::of_file(&self.path(digest)).await {
            Ok((actual, _)) if actual == *digest => {
                self.trust(*digest);
                Ok(true)
            }
            Ok(_) => {
                tracing::warn!(%digest, "a damaged file was removed from the store");
                self.remove(digest).await?;
                Ok(false)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Life {
    /// Begins a life of the store in `root`, and finds out whether a former one ended in a crash.
    pub(crate) fn begin(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root.join(LIVES))?;
        std::fs::create_dir_all(root.join(IN_USE))?;
        let _turn = turn(root)?;
        let mut crashed = false;
        for item in std::fs::read_dir(root.join(LIVES))? {
            crashed |= is_left(&item?.path())?;
        }
        let file = Locked::new(&root.join(LIVES), &[])?;
        Ok(Self { file: Some(file), doubt: Mutex::new(crashed.then(HashSet::new)) })
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let doubt = self.doubt.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(file)) = (doubt.is_some(), self.file.take()) {
            // Not all was read, so the next life has to doubt too: what tells of the crash stays.
            file.leave();
        }
    }
}

impl Locked {
    /// A new file in `folder`, locked before anybody else looks, which the turn's holder sees to.
    fn new(folder: &Path, content: &[u8]) -> io::Result<Self> {
        let path = folder.join(format!("{:016x}", rand::random::<u64>()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        let mut locked = Self { path, file };
        locked.file.try_lock()?;
        locked.file.write_all(content)?;
        Ok(locked)
    }

    /// Unlocks the file without removing it.
    fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What cannot be removed now is found unlocked, and removed, by the next who looks.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Waits for this process's turn, which lasts until the file is dropped.
fn turn(root: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(root.join("turn"))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < TURN_PATIENCE => {
                std::thread::sleep(TURN_PAUSE)
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds the store"));
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
}

/// Whether the file's process has ended without removing it; it is removed then.
fn is_left(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    match file.try_lock() {
        Ok(()) => std::fs::remove_file(path).map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn keep(root: &Path, files: &[PathBuf]) -> io::Result<Option<Kept>> {
    let _turn = turn(root)?;
    let now = SystemTime::now();
    let mut names = String::new();
    for path in files {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if let Some(digest) = path.strip_prefix(root).ok().and_then(digest_at) {
            // The order in which files go may be a little off where the file system does not keep times.
            let _ = file.set_modified(now);
            names.push_str(&format!("{digest}\n"));
        }
    }
    Ok(Some(Kept { _list: Locked::new(&root.join(IN_USE), names.as_bytes())? }))
}

/// The digest of the blob at `ab/cdef…`.
fn digest_at(path: &Path) -> Option<Digest> {
    let (shard, rest) = path.to_str()?.split_once('/')?;
    format!("{shard}{rest}").parse().ok()
}

/// What a store holds, as long as the turn lasts.
struct Found {
    _turn: File,
    /// The blobs that nobody uses and their bytes, what was used longest ago first.
    unused: Vec<(Digest, u64)>,
    /// The bytes of the blobs that are in use.
    used: u64,
}

impl Found {
    fn in_store(root: &Path) -> io::Result<Self> {
        let turn = turn(root)?;
        let mut kept = HashSet::new();
        for item in std::fs::read_dir(root.join(IN_USE))? {
            let path = item?.path();
            if is_left(&path)? {
                continue;
            }
            let mut names = String::new();
            match File::open(&path) {
                Ok(mut file) => file.read_to_string(&mut names).map(|_| ())?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            kept.extend(names.lines().filter_map(|line| line.parse::<Digest>().ok()));
        }
        let mut unused = Vec::new();
        let mut used = 0_u64;
        for (digest, metadata) in list_blobs(root)? {
            if kept.contains(&digest) {
                used = used.saturating_add(metadata.len());
            } else {
                // Where the file system does not tell, the blob counts as oldest.
                let then = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                unused.push((then, digest, metadata.len()));
            }
        }
        unused.sort_unstable_by_key(|(then, digest, _)| (*then, digest.0));
        let unused = unused.into_iter().map(|(_, digest, size)| (digest, size)).collect();
        Ok(Self { _turn: turn, unused, used })
    }

    /// Removes the oldest blobs until all take no more than `limit` bytes, as far as nobody uses them.
    fn trim(self, root: &Path, limit: u64) -> io::Result<Trimmed> {
        let sizes = self.unused.iter().map(|(_, size)| *size);
        let left = sizes.fold(self.used, u64::saturating_add);
        let mut trimmed = Trimmed { left, ..Trimmed::default() };
        for (digest, size) in self.unused {
            if trimmed.left <= limit {
                break;
            }
            match std::fs::remove_file(crate::blobs::path_in(root, &digest)) {
                Ok(()) => {
                    tracing::info!(%digest, size, "file removed from the store: no more room");
                    trimmed.blobs += 1;
                    trimmed.bytes += size;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            trimmed.left -= size;
        }
        Ok(trimmed)
    }
}

/// Makes room beside blobs of `limit` bytes at most: for `wanted` bytes, or as many as can be had. Gives how many; `None`, and nothing is
/// removed, where that is less than `needed`.
fn make_room(root: &Path, limit: u64, needed: u64, wanted: u64) -> io::Result<Option<u64>> {
    let found = Found::in_store(root)?;
    let free = limit.saturating_sub(found.used);
    if free < needed {
        return Ok(None);
    }
    let made = wanted.min(free);
    found.trim(root, limit - made)?;
    Ok(Some(made))
}
