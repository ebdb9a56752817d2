//! The room on the disk of the data folder, and how much of it stays free.

use std::io;
use std::path::Path;
use std::str::FromStr;

use artifact::{BlobStore, Trimmed};

/// The default's bytes, where they are less than its share.
const DEFAULT_BYTES: u64 = 2 << 30;

/// The default's share of a disk, in percent.
const DEFAULT_PERCENT: u8 = 5;

/// The room on a disk without which no task is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MinFreeDisk {
    /// 2 GiB, or 5 % of the disk where that is less.
    #[default]
    Default,
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk, up to 100.
    Percent(u8),
}

/// Why a text names no room on a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a number of bytes, or a share from 0% to 100%")]
pub struct ParseMinFreeDiskError;

/// How large a disk is and how much of it is free to this user, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

/// After a fetch that found the disk full: removes the fetched files that nobody uses, and says whether there were any. How
/// much is missing is not known before the next try.
pub(crate) async fn empty(store: &BlobStore) -> bool {
    match store.trim(0).await {
        Ok(Trimmed { blobs: 0, .. }) => false,
        Ok(Trimmed { blobs, bytes, left }) => {
            tracing::warn!(blobs, bytes, left, "the disk is full: fetched files removed, and fetching again");
            true
        }
        Err(error) => {
            tracing::error!(%error, "cannot remove fetched files");
            false
        }
    }
}

impl MinFreeDisk {
    /// The bytes that have to be free on a disk of so many bytes.
    pub fn bytes(self, total: u64) -> u64 {
        let percent = |percent: u8| total / 100 * u64::from(percent);
        match self {
            Self::Default => DEFAULT_BYTES.min(percent(DEFAULT_PERCENT)),
            Self::Bytes(bytes) => bytes,
            Self::Percent(share) => percent(share),
        }
    }
}

impl FromStr for MinFreeDisk {
    type Err = ParseMinFreeDiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share| *share <= 100).map(Self::Percent),
            None => text.parse().ok().map(Self::Bytes),
        };
        parsed.ok_or(ParseMinFreeDiskError)
    }
}

impl Space {
    /// Asks the file system that holds `folder`.
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }

    /// The bytes that are missing before `min` is kept; zero if it is.
    pub(crate) fn missing(self, min: MinFreeDisk) -> u64 {
        min.bytes(self.total).saturating_sub(self.free)
    }

    /// Why no tasks are taken, for people.
    pub(crate) fn too_full(self, min: MinFreeDisk) -> String {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "the disk has {} MiB free, less than the {} MiB to keep",
            mib(self.free),
            mib(min.bytes(self.total))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_suits_large_and_small_disks() {
        assert_eq!(MinFreeDisk::Default.bytes(4 << 40), 2 << 30);
        assert_eq!(MinFreeDisk::Default.bytes(10_000), 500);
        assert_eq!("7".parse(), Ok(MinFreeDisk::Bytes(7)));
        assert_eq!("7%".parse::<MinFreeDisk>().unwrap().bytes(1000), 70);
        assert!("x%".parse::<MinFreeDisk>().is_err() && "".parse::<MinFreeDisk>().is_err());
    }

    #[test]
    fn what_is_missing_is_told() {
        let space = Space { total: 100 << 20, free: 10 << 20 };
        assert_eq!(space.missing(MinFreeDisk::Percent(5)), 0);
        assert_eq!(space.missing(MinFreeDisk::Percent(20)), 10 << 20);
        let told = space.too_full(MinFreeDisk::Percent(20));
        assert_eq!(told, "the disk has 10 MiB free, less than the 20 MiB to keep");
        assert!(Space::of(&std::env::temp_dir()).unwrap().total > 0);
    }
}
