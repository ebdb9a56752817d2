//! Uploads that broke off: what came of them is kept for a while, so that their clients go on where they stopped.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use artifact::Digest;
use bytes::Bytes;
use futures_util::Stream;
use store::KeyId;
use taskmarket::{Address, TaskId};
use tokio::time::Instant;

use super::objects::Partial;
use super::{Artifacts, PutError};

/// How long a client has to come back.
const KEPT_FOR: Duration = Duration::from_secs(10 * 60);
/// How many are kept of all keys, and as many of all attempts, so that neither take the other's. Each holds up to three parts in memory.
const MAX_KEPT: usize = 16;
const MAX_KEPT_OF_KEY: usize = 4;
/// An attempt has one result.
const MAX_KEPT_OF_ATTEMPT: usize = 1;
const MAX_KEPT_OF_PROVIDER: usize = 4;

/// Whose an upload is: what broke off is theirs alone to take up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Uploader {
    /// An API key, whose quota holds.
    Key(KeyId),
    /// An attempt. What it stores counts for the key that published its task, and is not refused for that key's quota.
    Attempt {
        /// Its task.
        task_id: TaskId,
        /// Its number.
        attempt: u32,
        /// Whose host makes it.
        provider: Address,
        /// The key that published the task.
        owner: KeyId,
    },
}

impl Uploader {
    /// Whose the artifact will be.
    pub(super) fn owner(&self) -> &KeyId {
        match self {
            Self::Key(owner) | Self::Attempt { owner, .. } => owner,
        }
    }

    /// Whether the owner's quota holds.
    pub(super) fn is_bounded(&self) -> bool {
        matches!(self, Self::Key(_))
    }

    fn is_attempt(&self) -> bool {
        matches!(self, Self::Attempt { .. })
    }

    fn provider(&self) -> Option<Address> {
        match self {
            Self::Key(_) => None,
            Self::Attempt { provider, .. } => Some(*provider),
        }
    }

    fn most_kept(&self) -> usize {
        match self {
            Self::Key(_) => MAX_KEPT_OF_KEY,
            Self::Attempt { .. } => MAX_KEPT_OF_ATTEMPT,
        }
    }
}

/// What the bytes of an upload are charged to. What was charged is given back when it is dropped, unless it is stored.
pub(crate) trait Account: fmt::Debug + Send {
    /// Charges bytes that came; `false` where there is no room for them.
    fn charge(&mut self, came: u64) -> bool;
    /// What came is stored as this artifact.
    fn stored(&mut self, digest: Digest);
}

/// The account of an upload, which outlives the request that began it.
pub(crate) type Room = Arc<Mutex<dyn Account>>;

/// An upload: begun, or taken up again.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(super) partial: Partial,
    pub(super) uploader: Uploader,
    room: Room,
}

impl Upload {
    pub(super) fn new(partial: Partial, uploader: Uploader, room: Room) -> Self {
        Self { partial, uploader, room }
    }

    /// What its bytes are charged to.
    pub(crate) fn room(&self) -> Room {
        Arc::clone(&self.room)
    }
}

#[derive(Debug)]
struct Kept {
    upload: Upload,
    since: Instant,
}

/// The uploads that broke off, by whose they are and what they are of.
#[derive(Debug, Default)]
pub(super) struct BrokenOff(Mutex<AllKept>);

type AllKept = HashMap<(Uploader, Digest), Kept>;

impl BrokenOff {
    /// Keeps one, where there is room for it: an uploader's oldest goes for its newest, and a provider's, but none for another's.
    fn keep(&self, digest: Digest, upload: Upload) {
        let mut kept = self.lock();
        let uploader = upload.uploader.clone();
        kept.remove(&(uploader.clone(), digest));
        make_way(&mut kept, uploader.most_kept(), |other| *other == uploader);
        if let Some(provider) = uploader.provider() {
            make_way(&mut kept, MAX_KEPT_OF_PROVIDER, |other| other.provider() == Some(provider));
        }
        let alike = kept.keys().filter(|(other, _)| other.is_attempt() == uploader.is_attempt()).count();
        if alike < MAX_KEPT {
            kept.insert((uploader, digest), Kept { upload, since: Instant::now() });
        }
    }

    /// Lets go of what broke off so long ago.
    pub(super) fn expire(&self, ago: Duration) {
        self.lock().retain(|_, kept| kept.since.elapsed() < ago);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, AllKept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of the oldest of some where they are `most` already.
fn make_way(all: &mut AllKept, most: usize, are_some: impl Fn(&Uploader) -> bool) {
    let of_some = || all.iter().filter(|((uploader, _), _)| are_some(uploader));
    if of_some().count() >= most {
        let oldest = of_some().min_by_key(|(_, kept)| kept.since).map(|(of, _)| of.clone());
        oldest.and_then(|oldest| all.remove(&oldest));
    }
}

impl Artifacts {
    /// How many bytes came of an upload that broke off, where they are kept.
    pub(crate) fn came(&self, uploader: &Uploader, digest: Digest) -> Option<u64> {
        self.0.broken_off.lock().get(&(uploader.clone(), digest)).map(|kept| kept.upload.partial.len())
    }

    /// Takes up an upload of which so many bytes came before it broke off; `None` if none such is kept.
    pub(crate) fn take_up(&self, uploader: &Uploader, digest: Digest, came: u64) -> Option<Upload> {
        let mut kept = self.0.broken_off.lock();
        let of = (uploader.clone(), digest);
        if kept.get(&of)?.upload.partial.len() != came {
            return None;
        }
        kept.remove(&of).map(|kept| kept.upload)
    }

    /// Lets go of all that broke off of an uploader's, and of what it was charged for that.
    pub(crate) fn forget(&self, uploader: &Uploader) {
        self.0.broken_off.lock().retain(|(other, _), _| other != uploader);
    }

    fn keep(&self, digest: Digest, upload: Upload) {
        self.0.broken_off.keep(digest, upload);
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            if let Some(inner) = inner.upgrade() {
                inner.broken_off.expire(KEPT_FOR);
            }
        });
    }
}

/// An upload that is kept if its bytes break off, or their reader is dropped.
pub(super) struct UnderWay<'a> {
    artifacts: &'a Artifacts,
    digest: Digest,
    upload: Option<Upload>,
}

impl<'a> UnderWay<'a> {
    pub(super) fn new(artifacts: &'a Artifacts, digest: Digest, upload: Upload) -> Self {
        Self { artifacts, digest, upload: Some(upload) }
    }

    /// The upload with all of its bytes.
    pub(super) async fn take_in<E>(
        mut self,
        source: impl Stream<Item = Result<Bytes, E>>,
        limit: u64,
    ) -> Result<Upload, PutError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let upload = self.upload.as_mut().expect("it is taken at the end");
        match upload.partial.take_in(source, limit).await {
            Err(broken @ PutError::Source(_)) => Err(broken),
            taken => {
                let upload = self.upload.take().expect("it is taken once");
                taken.map(|()| upload)
            }
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else { return };
        // What is not yet a part of anything is sent again as soon as it is asked for.
        if upload.partial.has_parts() {
            self.artifacts.keep(self.digest, upload);
        }
    }
}
