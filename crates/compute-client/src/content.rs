//! What a task refers to: references as they are, and local files and folders, which are hashed and uploaded to the relay.

mod named;

use std::collections::BTreeMap;
use std::io::{SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use artifact::{Digest, FolderEntry, FolderManifest};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use reqwest::Body;
use taskmarket::{B256, ContentHash, Reference};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

pub(crate) use self::named::Named;
use crate::failure::{Context as _, Failure, Outcome};
use crate::relay::Relay;
use crate::ui::{Ui, size};

/// How many files are uploaded at once.
const UPLOADS: usize = 4;
/// How much of a file is read at a time, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// What begins a WebAssembly module.
const WASM_MAGIC: &[u8] = b"\0asm";
/// The files that the `embed` runtime needs of a model's folder.
pub(crate) const EMBED_NEEDS: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];
/// The files that it reads where they are there.
pub(crate) const EMBED_READS: [&str; 3] =
    ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"];

/// Lists the files of a folder that the `embed` runtime reads.
///
/// # Errors
/// One that it needs cannot be read.
pub(crate) async fn embed_manifest(folder: &Path) -> Result<FolderManifest, String> {
    let mut entries = Vec::new();
    for name in EMBED_NEEDS.iter().chain(&EMBED_READS) {
        match Digest::of_file(&folder.join(name)).await {
            Ok((digest, size)) => entries.push(FolderEntry { path: (*name).to_owned(), size, digest }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && EMBED_READS.contains(name) => {}
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    FolderManifest::new(entries).map_err(|error| error.to_string())
}

/// A model or an input, ready to be named in a task.
#[derive(Debug)]
pub(crate) struct Content {
    /// How the task refers to it.
    pub(crate) reference: Reference,
    /// Its SHA-256, where it is known for certain.
    pub(crate) hash: Option<ContentHash>,
    /// Whether it is a folder, named by its list.
    is_folder: bool,
    /// What must be at the relay before the task is published.
    uploads: Vec<Upload>,
    /// Keeps standard input's copy until it is uploaded.
    _kept: Option<NamedTempFile>,
}

#[derive(Debug, Clone)]
struct Upload {
    digest: Digest,
    bytes: u64,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Memory(Vec<u8>),
}

impl Content {
    /// These bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Outcome<Self> {
        Self::of_blob(Digest::of(bytes), bytes.len() as u64, Source::Memory(bytes.to_vec()))
    }

    /// The files of a folder that a manifest lists.
    pub(crate) fn of_folder(folder: &Path, manifest: &FolderManifest) -> Outcome<Self> {
        let mut uploads: BTreeMap<Digest, Upload> = manifest
            .entries()
            .iter()
            .map(|FolderEntry { path, size, digest }| {
                let source = Source::File(folder.join(path));
                (*digest, Upload { digest: *digest, bytes: *size, source })
            })
            .collect();
        let list = manifest.to_bytes();
        let digest = manifest.digest();
        uploads.insert(digest, Upload { digest, bytes: list.len() as u64, source: Source::Memory(list) });
        Ok(Self {
            reference: format!("artifact://{digest}/").parse().map_err(Failure::failed)?,
            hash: Some(hash_of(digest)),
            is_folder: true,
            uploads: uploads.into_values().collect(),
            _kept: None,
        })
    }

    /// Standard input, and whether it begins as a WebAssembly module.
    async fn of_stdin(flag: &str, limit: u64) -> Outcome<(Self, bool)> {
        let mut kept = NamedTempFile::new().or_failed(flag)?;
        let mut hasher = artifact::Hasher::new();
        let mut stdin = tokio::io::stdin();
        let mut piece = vec![0; READ_BYTES];
        let mut is_wasm = false;
        loop {
            let read = stdin.read(&mut piece).await.or_failed("standard input")?;
            if read == 0 {
                break;
            }
            is_wasm |= hasher.is_empty() && piece[..read].starts_with(WASM_MAGIC);
            hasher.update(&piece[..read]);
            check_size(flag, "standard input", hasher.len(), limit)?;
            kept.write_all(&piece[..read]).or_failed(flag)?;
        }
        let source = Source::File(kept.path().to_owned());
        let mut content = Self::of_blob(hasher.digest(), hasher.len(), source)?;
        content._kept = Some(kept);
        Ok((content, is_wasm))
    }

    fn of_blob(digest: Digest, bytes: u64, source: Source) -> Outcome<Self> {
        Ok(Self {
            reference: format!("artifact://{digest}").parse().map_err(Failure::failed)?,
            hash: Some(hash_of(digest)),
            is_folder: false,
            uploads: vec![Upload { digest, bytes, source }],
            _kept: None,
        })
    }

    /// Checks the content against the hash that the user expects, and pins it. `flag` is the hash's.
    pub(crate) fn pin(&self, flag: &str, expected: Option<ContentHash>) -> Outcome<ContentHash> {
        match (expected, self.hash) {
            (Some(expected), _) if !expected.is_pinned() => {
                Err(Failure::usage(format_args!("{flag}: all zeros are no content's hash, and pin nothing"))
                    .hint(format_args!("leave {flag} out, or give the SHA-256 of the content")))
            }
            (Some(expected), Some(actual)) if expected != actual => Err(Failure::unverified(format_args!(
                "{flag}: the content's SHA-256 is {actual}, but {expected} was given"
            ))
            .hint("the content changed, or the hash is of another one")),
            (Some(expected), _) => Ok(expected),
            (None, actual) => Ok(actual.unwrap_or(ContentHash::UNPINNED)),
        }
    }

    /// Stores at the relay what it has not got yet of these. A folder's list goes after all files, so that it never names
    /// what is not there.
    pub(crate) async fn upload(contents: &[&Self], relay: &Relay, ui: &Ui) -> Outcome {
        let all: BTreeMap<Digest, &Upload> = contents
            .iter()
            .flat_map(|content| &content.uploads)
            .map(|upload| (upload.digest, upload))
            .collect();
        let missing: Vec<(&Upload, u64)> = stream::iter(all.into_values())
            .map(|upload| async move {
                let lacks = relay.lacks(&upload.digest).await?;
                Ok::<_, Failure>(lacks.map(|from| (upload, from)))
            })
            .buffer_unordered(UPLOADS)
            .try_filter_map(|upload| async move { Ok(upload) })
            .try_collect()
            .await?;
        let bar = ui.bytes("uploading", missing.iter().map(|(upload, _)| upload.bytes).sum());
        let is_list = |(upload, _): &(&Upload, u64)| {
            contents.iter().any(|content| content.is_folder && content.hash == Some(hash_of(upload.digest)))
        };
        let (last, first): (Vec<_>, Vec<_>) = missing.iter().copied().partition(is_list);
        for group in [first, last] {
            stream::iter(group)
                .map(|(upload, from)| put(relay, upload, from, &bar))
                .buffer_unordered(UPLOADS)
                .try_collect::<()>()
                .await?;
        }
        bar.finish_and_clear();
        for content in contents.iter().filter(|content| !content.uploads.is_empty()) {
            let is_own = |upload: &Upload| content.uploads.iter().any(|own| own.digest == upload.digest);
            let own = || missing.iter().filter(|(upload, _)| is_own(upload));
            let bytes: u64 = own().map(|(upload, _)| upload.bytes).sum();
            let came: u64 = own().map(|(_, from)| from).sum();
            if came > 0 {
                let (bytes, came) = (size(bytes), size(came));
                ui.say(format_args!(
                    "uploaded {bytes} as {}, of which {came} were there of an upload that broke off",
                    content.reference
                ));
            } else if bytes > 0 {
                ui.say(format_args!("uploaded {} as {}", size(bytes), content.reference));
            } else {
                ui.detail(format_args!("{} is at the relay already", content.reference));
            }
        }
        Ok(())
    }
}

async fn put(relay: &Relay, upload: &Upload, from: u64, bar: &ProgressBar) -> Outcome {
    // What the bar counts of this one.
    let shown = Arc::new(AtomicU64::new(0));
    let body = async |from: u64| {
        bar.dec(shown.swap(from, Ordering::Relaxed));
        bar.inc(from);
        let (bar, shown) = (bar.clone(), Arc::clone(&shown));
        let count = move |piece: &[u8]| {
            let length = piece.len() as u64;
            shown.fetch_add(length, Ordering::Relaxed);
            bar.inc(length);
        };
        match &upload.source {
            Source::Memory(bytes) => {
                let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
                count(rest);
                Ok(Body::from(rest.to_vec()))
            }
            Source::File(path) => {
                let mut file = tokio::fs::File::open(path).await.or_failed(path.display())?;
                file.seek(SeekFrom::Start(from)).await.or_failed(path.display())?;
                let pieces = ReaderStream::with_capacity(file, READ_BYTES);
                Ok(Body::wrap_stream(pieces.inspect_ok(move |piece| count(piece))))
            }
        }
    };
    relay.put(&upload.digest, upload.bytes, from, body).await
}

fn check_size(flag: &str, what: &str, bytes: u64, limit: u64) -> Outcome {
    if bytes <= limit {
        return Ok(());
    }
    let (bytes, limit) = (size(bytes), size(limit));
    Err(Failure::usage(format_args!(
        "{flag}: {what} is more than the relay takes: {bytes}, of {limit} at most"
    ))
    .hint("publish it at an https:// URL and give that"))
}

/// A digest as tasks and proofs name it.
pub(crate) fn hash_of(digest: Digest) -> ContentHash {
    ContentHash(B256::from(digest.0))
}

#[cfg(test)]
mod tests {
    use taskmarket::Runtime;

    use super::*;

    async fn content(text: &str) -> Content {
        Named::look("--input", text).await.unwrap().content(None, u64::MAX).await.unwrap()
    }

    #[tokio::test]
    async fn of_an_embedding_model_only_what_is_read_is_uploaded() {
        let folder = tempfile::tempdir().unwrap();
        for name in EMBED_NEEDS.iter().chain(&["README.md", "modules.json"]) {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let named = Named::look("--model", folder.path().to_str().unwrap()).await.unwrap();
        named.check_model(Runtime::Embed).unwrap();
        let content = named.content(Some(Runtime::Embed), u64::MAX).await.unwrap();
        assert_eq!(content.uploads.len(), 5, "four files and their list");
    }

    #[tokio::test]
    async fn a_folder_is_named_by_its_list_and_brings_its_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "same"] {
            std::fs::write(folder.path().join(name), if name == "same" { "a" } else { name }).unwrap();
        }
        let content = content(folder.path().to_str().unwrap()).await;
        let manifest = FolderManifest::of_dir(folder.path()).await.unwrap();
        assert_eq!(content.reference.to_string(), format!("artifact://{}/", manifest.digest()));
        assert_eq!(content.hash, Some(hash_of(manifest.digest())));
        assert_eq!(content.uploads.len(), 3, "two contents and the list");
    }

    #[tokio::test]
    async fn a_wrong_hash_is_a_failed_verification_and_references_may_be_unpinned() {
        let other = ContentHash(B256::repeat_byte(1));
        let here = Content::of_bytes(b"abc").unwrap();
        let stored = content(&format!("artifact://{}", Digest::of(b"abc"))).await;
        for content in [here, stored] {
            let failure = content.pin("--input-hash", Some(other)).unwrap_err();
            assert_eq!(failure.exit(), crate::failure::Exit::Unverified);
            assert_eq!(content.pin("--input-hash", None).unwrap(), content.hash.unwrap());
        }
        let remote = content("https://a.example/x").await;
        assert_eq!(remote.pin("--input-hash", None).unwrap(), ContentHash::UNPINNED);
        assert_eq!(remote.pin("--input-hash", Some(other)).unwrap(), other);
    }
}
