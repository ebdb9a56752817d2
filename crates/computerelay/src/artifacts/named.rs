//! What tasks name: models and inputs, the files of folders among them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use artifact::{Digest, FolderManifest, Reference};
use futures_util::TryStreamExt;
use taskmarket::Task;

use super::{Artifacts, BlobError};

/// The largest folder manifest that is read, in bytes: the most that crate `artifact` takes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Folders whose files are kept in mind. Each takes 2 MiB at most.
const MAX_FOLDERS: usize = 16;

/// The files of a folder.
pub(crate) type Files = Arc<HashSet<Digest>>;

/// Folders whose manifests were read.
#[derive(Debug, Default)]
pub(crate) struct Folders(Mutex<HashMap<Digest, Files>>);

impl Folders {
    /// The files that a folder's manifest lists; none if it is not stored or no manifest.
    pub(super) async fn files_of(&self, artifacts: &Artifacts, folder: Digest) -> Result<Files, BlobError> {
        if let Some(files) = self.lock().get(&folder) {
            return Ok(Arc::clone(files));
        }
        let size = artifacts.size_of(&folder).await?.filter(|size| *size <= MAX_MANIFEST_BYTES);
        // It may be stored later: nothing to remember.
        let Some(size) = size else { return Ok(Arc::default()) };
        let Some(mut pieces) = artifacts.read(&folder, 0, size).await? else { return Ok(Arc::default()) };
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        let entries = FolderManifest::parse(&bytes);
        let files: HashSet<Digest> =
            entries.iter().flat_map(FolderManifest::entries).map(|entry| entry.digest).collect();
        let files = Arc::new(files);
        let mut folders = self.lock();
        if folders.len() >= MAX_FOLDERS {
            folders.clear();
        }
        folders.insert(folder, Arc::clone(&files));
        Ok(files)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Files>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The artifacts that a task names, each with whether it is a folder's manifest.
pub(crate) fn named_by(task: &Task) -> Vec<(Digest, bool)> {
    let mut named = Vec::new();
    for (reference, hash) in [(&task.model_cid, task.model_hash), (&task.input_cid, task.input_hash)] {
        let parsed: Option<Reference> = reference.as_str().parse().ok();
        let is_folder = parsed.as_ref().is_some_and(Reference::is_folder);
        if let Some(digest) = reference.artifact() {
            named.push((Digest(digest.0.0), is_folder));
        }
        if hash.is_pinned() {
            named.push((Digest(hash.0.0), is_folder));
        }
    }
    named
}
