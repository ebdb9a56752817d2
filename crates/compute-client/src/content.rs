//! What a task refers to: references as they are, and local files and folders, which are hashed and uploaded to the relay.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use artifact::{Digest, FolderEntry, FolderManifest};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use reqwest::Body;
use taskmarket::{B256, ContentHash, Reference, Runtime};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use crate::failure::{Context as _, Failure, Outcome};
use crate::relay::Relay;
use crate::ui::{Ui, size};

/// How many files are uploaded at once.
const UPLOADS: usize = 4;
/// How much of a file is read at a time, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// What begins a WebAssembly module.
const WASM_MAGIC: &[u8] = b"\0asm";
/// What a folder with an embedding model has.
const EMBED_FILES: [&str; 2] = ["config.json", "model.safetensors"];

/// A model or an input, ready to be named in a task.
#[derive(Debug)]
pub(crate) struct Content {
    /// How the task refers to it.
    pub(crate) reference: Reference,
    /// Its SHA-256, where it is known for certain.
    pub(crate) hash: Option<ContentHash>,
    /// What executes it, where its kind is certain.
    pub(crate) runtime: Option<Runtime>,
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
    /// Takes what the user wrote: a reference, a local file or folder, or `-` for standard input. `flag` names it in errors.
    pub(crate) async fn of(flag: &str, text: &str) -> Outcome<Self> {
        if text == "-" {
            return Self::of_stdin(flag).await;
        }
        if text.contains("://") {
            return Self::of_reference(text.parse().or_usage(flag)?);
        }
        let path = Path::new(text);
        let metadata = std::fs::metadata(path).map_err(|error| {
            Failure::usage(format_args!("{flag}: {text}: {error}")).hint(
                "give a file, a folder, - for standard input, or a reference: ipfs://, https://, artifact://, oci://, file://",
            )
        })?;
        if metadata.is_dir() {
            let manifest = FolderManifest::of_dir(path).await.or_usage(flag)?;
            return Self::of_folder(path, &manifest);
        }
        let (digest, bytes) = Digest::of_file(path).await.or_usage(format_args!("{flag}: {text}"))?;
        let is_wasm =
            path.extension().is_some_and(|extension| extension == "wasm") || begins_as_wasm(path).await;
        Self::of_blob(digest, bytes, Source::File(path.to_owned()), is_wasm)
    }

    /// These bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Outcome<Self> {
        let source = Source::Memory(bytes.to_vec());
        Self::of_blob(Digest::of(bytes), bytes.len() as u64, source, bytes.starts_with(WASM_MAGIC))
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
        let is_embed = EMBED_FILES.iter().all(|name| manifest.get(name).is_some());
        Ok(Self {
            reference: format!("artifact://{digest}/").parse().map_err(Failure::failed)?,
            hash: Some(hash_of(digest)),
            runtime: is_embed.then_some(Runtime::Embed),
            uploads: uploads.into_values().collect(),
            _kept: None,
        })
    }

    async fn of_stdin(flag: &str) -> Outcome<Self> {
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
            kept.write_all(&piece[..read]).or_failed(flag)?;
        }
        let source = Source::File(kept.path().to_owned());
        let mut content = Self::of_blob(hasher.digest(), hasher.len(), source, is_wasm)?;
        content._kept = Some(kept);
        Ok(content)
    }

    fn of_blob(digest: Digest, bytes: u64, source: Source, is_wasm: bool) -> Outcome<Self> {
        Ok(Self {
            reference: format!("artifact://{digest}").parse().map_err(Failure::failed)?,
            hash: Some(hash_of(digest)),
            runtime: is_wasm.then_some(Runtime::Wasm),
            uploads: vec![Upload { digest, bytes, source }],
            _kept: None,
        })
    }

    fn of_reference(reference: Reference) -> Outcome<Self> {
        let path = reference.as_str().split(['?', '#']).next().unwrap_or_default();
        let is_wasm = path.ends_with(".wasm");
        Ok(Self {
            hash: reference.artifact(),
            runtime: is_wasm.then_some(Runtime::Wasm),
            reference,
            uploads: Vec::new(),
            _kept: None,
        })
    }

    /// Checks the content against the hash that the user expects, and pins it. `flag` is the hash's.
    pub(crate) fn pin(&self, flag: &str, expected: Option<ContentHash>) -> Outcome<ContentHash> {
        match (expected, self.hash) {
            (Some(expected), Some(actual)) if expected.is_pinned() && expected != actual => {
                Err(Failure::unverified(format_args!(
                    "{flag}: the content's SHA-256 is {actual}, but {expected} was given"
                ))
                .hint("the content changed, or the hash is of another one"))
            }
            (Some(expected), _) => Ok(expected),
            (None, actual) => Ok(actual.unwrap_or(ContentHash::UNPINNED)),
        }
    }

    /// Stores at the relay what it has not got yet. A folder's list goes last, so that it never names what is not there.
    pub(crate) async fn upload(&self, relay: &Relay, ui: &Ui) -> Outcome {
        let missing: Vec<&Upload> =
            stream::iter(&self.uploads)
                .map(|upload| async move {
                    Ok::<_, Failure>((!relay.has(&upload.digest).await?).then_some(upload))
                })
                .buffer_unordered(UPLOADS)
                .try_filter_map(|upload| async move { Ok(upload) })
                .try_collect()
                .await?;
        if missing.is_empty() {
            ui.detail(format_args!("{} is at the relay already", self.reference));
            return Ok(());
        }
        let bytes = missing.iter().map(|upload| upload.bytes).sum();
        let bar = ui.bytes("uploading", bytes);
        let is_list = |upload: &&Upload| self.reference.artifact() == Some(hash_of(upload.digest));
        let (last, first): (Vec<_>, Vec<_>) = missing.into_iter().partition(is_list);
        for group in [first, last] {
            stream::iter(group)
                .map(|upload| put(relay, upload, &bar))
                .buffer_unordered(UPLOADS)
                .try_collect::<()>()
                .await?;
        }
        bar.finish_and_clear();
        ui.say(format_args!("uploaded {} as {}", size(bytes), self.reference));
        Ok(())
    }
}

async fn put(relay: &Relay, upload: &Upload, bar: &ProgressBar) -> Outcome {
    let body = async || match &upload.source {
        Source::Memory(bytes) => {
            bar.inc(bytes.len() as u64);
            Ok(Body::from(bytes.clone()))
        }
        Source::File(path) => {
            let file = tokio::fs::File::open(path).await.or_failed(path.display())?;
            let bar = bar.clone();
            let pieces = ReaderStream::with_capacity(file, READ_BYTES);
            Ok(Body::wrap_stream(pieces.inspect_ok(move |piece| bar.inc(piece.len() as u64))))
        }
    };
    relay.put(&upload.digest, upload.bytes, body).await
}

async fn begins_as_wasm(path: &Path) -> bool {
    let mut head = [0; WASM_MAGIC.len()];
    let Ok(mut file) = tokio::fs::File::open(path).await else { return false };
    file.read_exact(&mut head).await.is_ok() && head == WASM_MAGIC
}

/// A digest as tasks and proofs name it.
pub(crate) fn hash_of(digest: Digest) -> ContentHash {
    ContentHash(B256::from(digest.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn runtimes_are_inferred_only_where_certain() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("program"), b"\0asm\x01\0\0\0").unwrap();
        std::fs::write(path("text"), b"words").unwrap();
        std::fs::create_dir(path("model")).unwrap();
        std::fs::write(path("model/config.json"), b"{}").unwrap();
        let runtime = async |text: &str| Content::of("--model", text).await.unwrap().runtime;
        assert_eq!(runtime(&path("program")).await, Some(Runtime::Wasm));
        assert_eq!(runtime(&path("text")).await, None);
        assert_eq!(runtime(&path("model")).await, None);
        std::fs::write(path("model/model.safetensors"), b"x").unwrap();
        assert_eq!(runtime(&path("model")).await, Some(Runtime::Embed));
        assert_eq!(runtime("https://a.example/p.wasm?sig=1").await, Some(Runtime::Wasm));
        assert_eq!(runtime("ipfs://bafy/model").await, None);
    }

    #[tokio::test]
    async fn a_folder_is_named_by_its_list_and_brings_its_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "same"] {
            std::fs::write(folder.path().join(name), if name == "same" { "a" } else { name }).unwrap();
        }
        let content = Content::of("--model", folder.path().to_str().unwrap()).await.unwrap();
        let manifest = FolderManifest::of_dir(folder.path()).await.unwrap();
        assert_eq!(content.reference.to_string(), format!("artifact://{}/", manifest.digest()));
        assert_eq!(content.hash, Some(hash_of(manifest.digest())));
        assert_eq!(content.uploads.len(), 3, "two contents and the list");
    }

    #[tokio::test]
    async fn a_wrong_hash_is_a_failed_verification_and_references_may_be_unpinned() {
        let content = Content::of_bytes(b"abc").unwrap();
        let other = ContentHash(B256::repeat_byte(1));
        let failure = content.pin("--input-hash", Some(other)).unwrap_err();
        assert_eq!(failure.exit(), crate::failure::Exit::Unverified);
        assert_eq!(content.pin("--input-hash", None).unwrap(), content.hash.unwrap());
        let remote = Content::of("--input", "https://a.example/x").await.unwrap();
        assert_eq!(remote.pin("--input-hash", None).unwrap(), ContentHash::UNPINNED);
        assert_eq!(remote.pin("--input-hash", Some(other)).unwrap(), other);
    }
}
