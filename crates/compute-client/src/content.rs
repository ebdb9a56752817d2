//! What a task refers to: references as they are, and local files and folders, which are hashed and uploaded to the relay.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use artifact::{Digest, FolderEntry, FolderManifest, ReferenceKind};
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
/// What a tar has, and where.
const TAR_MAGIC: &[u8] = b"ustar";
const TAR_MAGIC_AT: usize = 257;
/// What begins a file that gzip or zstd wrote.
const COMPRESSED_MAGICS: [&[u8]; 2] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd"];
/// How much of a file is looked at, in bytes.
const HEAD_BYTES: u64 = 512;
/// What a container's model is.
const IMAGE_HINT: &str = "name an image by its digest, oci://IMAGE@sha256:..., or an archive that `docker save` or `podman save` wrote";
/// The files that the `embed` runtime needs of a model's folder.
pub(crate) const EMBED_NEEDS: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];
/// The files that it reads where they are there.
pub(crate) const EMBED_READS: [&str; 3] =
    ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"];

/// What the user named, looked at but not read through: enough to refuse what cannot run before anything is hashed.
#[derive(Debug)]
pub(crate) struct Named {
    flag: &'static str,
    text: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Stdin,
    Reference(artifact::Reference),
    File { bytes: u64, kind: FileKind },
    Folder,
}

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Wasm,
    /// A tar, or something compressed that may be one.
    Archive,
    Other,
}

impl Named {
    /// Looks at what the user wrote: a reference, a local file or folder, or `-` for standard input. `flag` names it in errors.
    pub(crate) async fn look(flag: &'static str, text: &str) -> Outcome<Self> {
        let place = if text == "-" {
            Place::Stdin
        } else if text.contains("://") {
            Place::Reference(text.parse().or_usage(flag)?)
        } else {
            let metadata = std::fs::metadata(text).map_err(|error| {
                Failure::usage(format_args!("{flag}: {text}: {error}")).hint(
                    "give a file, a folder, - for standard input, or a reference: https://, artifact://, file://",
                )
            })?;
            if metadata.is_dir() {
                Place::Folder
            } else {
                Place::File { bytes: metadata.len(), kind: FileKind::of(Path::new(text)).await }
            }
        };
        Ok(Self { flag, text: text.to_owned(), place })
    }

    /// What executes it as a model, where that is certain.
    pub(crate) fn runtime(&self) -> Option<Runtime> {
        match &self.place {
            Place::Folder => Some(Runtime::Embed),
            Place::File { kind: FileKind::Wasm, .. } => Some(Runtime::Wasm),
            Place::File { .. } => self.text.ends_with(".wasm").then_some(Runtime::Wasm),
            Place::Reference(reference) => {
                if matches!(reference.kind(), ReferenceKind::Oci { .. }) {
                    return Some(Runtime::Container);
                }
                if matches!(reference.kind(), ReferenceKind::Model { .. }) {
                    return Some(Runtime::Openai);
                }
                let path = reference.as_str().split(['?', '#']).next().unwrap_or_default();
                path.ends_with(".wasm").then_some(Runtime::Wasm)
            }
            Place::Stdin => None,
        }
    }

    /// Refuses what is no model for this runtime.
    pub(crate) fn check_model(&self, runtime: Runtime) -> Outcome {
        let (flag, text) = (self.flag, &self.text);
        match (&self.place, runtime) {
            (Place::Folder, Runtime::Wasm) => {
                Err(Failure::usage(format_args!("{flag}: {text} is a folder; wasm takes a file")))
            }
            (Place::Folder, Runtime::Embed) => {
                let lacks = |name: &&str| !Path::new(text).join(name).is_file();
                let missing: Vec<&str> = EMBED_NEEDS.into_iter().filter(lacks).collect();
                if missing.is_empty() {
                    return Ok(());
                }
                Err(Failure::usage(format_args!("{flag}: {text} has no {}", missing.join(", no ")))
                    .hint(format_args!("embed takes a folder with {}", EMBED_NEEDS.join(", "))))
            }
            (Place::File { kind: FileKind::Archive | FileKind::Other, .. }, Runtime::Wasm) => {
                Err(not_wasm(flag, text))
            }
            (Place::File { .. } | Place::Stdin, Runtime::Embed) => {
                Err(Failure::usage(format_args!("{flag}: {text} is no folder; embed takes one"))
                    .hint(format_args!("it holds {}", EMBED_NEEDS.join(", "))))
            }
            (Place::Folder, Runtime::Container) => {
                Err(Failure::usage(format_args!("{flag}: {text} is a folder; container takes an image"))
                    .hint(IMAGE_HINT))
            }
            (Place::File { kind: FileKind::Wasm | FileKind::Other, .. }, Runtime::Container) => {
                Err(Failure::usage(format_args!("{flag}: {text} is no archive of an image")).hint(IMAGE_HINT))
            }
            (_, Runtime::Openai)
            | (Place::File { kind: FileKind::Archive, .. }, Runtime::Container)
            | (Place::File { kind: FileKind::Wasm, .. } | Place::Stdin | Place::Reference(_), _) => Ok(()),
        }
    }

    /// Refuses what the runtime does not take as an input.
    pub(crate) fn check_input(&self, runtime: Runtime) -> Outcome {
        let is_folder = match &self.place {
            Place::Folder => true,
            Place::Reference(reference) => reference.is_folder(),
            Place::File { .. } | Place::Stdin => false,
        };
        if is_folder && runtime != Runtime::Container {
            let (flag, text) = (self.flag, &self.text);
            return Err(Failure::usage(format_args!("{flag}: {text} is a folder; {runtime} takes a file")));
        }
        Ok(())
    }

    /// Warns of references that can be signed but that compute nodes do not fetch.
    pub(crate) fn warn(&self, ui: &Ui) {
        let Place::Reference(reference) = &self.place else { return };
        let scheme = match reference.kind() {
            ReferenceKind::Ipfs { .. } => "ipfs",
            ReferenceKind::Oci { .. } => "oci",
            ReferenceKind::Model { .. }
            | ReferenceKind::Artifact { .. }
            | ReferenceKind::Web { .. }
            | ReferenceKind::File { .. } => return,
        };
        ui.warn(format_args!("{}: compute nodes of this version do not fetch {scheme}://", self.flag));
    }

    /// Reads and hashes it, for a relay that takes files of so many bytes; `runtime` is what it is a model for, if it is one.
    pub(crate) async fn content(self, runtime: Option<Runtime>, limit: u64) -> Outcome<Content> {
        let Self { flag, text, place } = self;
        match place {
            Place::Stdin => {
                let (content, is_wasm) = Content::of_stdin(flag, limit).await?;
                if runtime == Some(Runtime::Wasm) && !is_wasm {
                    return Err(not_wasm(flag, "standard input"));
                }
                Ok(content)
            }
            Place::Reference(reference) => {
                let reference: Reference = reference.as_str().parse().or_usage(flag)?;
                let is_folder = reference.as_str().ends_with('/');
                Ok(Content {
                    hash: reference.artifact(),
                    reference,
                    is_folder,
                    uploads: Vec::new(),
                    _kept: None,
                })
            }
            Place::File { bytes, .. } => {
                check_size(flag, &text, bytes, limit)?;
                let path = PathBuf::from(&text);
                let (digest, bytes) =
                    Digest::of_file(&path).await.or_usage(format_args!("{flag}: {text}"))?;
                Content::of_blob(digest, bytes, Source::File(path))
            }
            Place::Folder => {
                let path = Path::new(&text);
                let manifest = match runtime {
                    Some(Runtime::Embed) => {
                        embed_manifest(path).await.or_usage(format_args!("{flag}: {text}"))?
                    }
                    Some(Runtime::Wasm | Runtime::Container | Runtime::Openai) | None => {
                        FolderManifest::of_dir(path).await.or_usage(flag)?
                    }
                };
                for FolderEntry { path: name, size, .. } in manifest.entries() {
                    check_size(flag, &path.join(name).display().to_string(), *size, limit)?;
                }
                Content::of_folder(path, &manifest)
            }
        }
    }
}

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

    /// Stores at the relay what it has not got yet of these. A folder's list goes after all files, so that it never names
    /// what is not there.
    pub(crate) async fn upload(contents: &[&Self], relay: &Relay, ui: &Ui) -> Outcome {
        let all: BTreeMap<Digest, &Upload> = contents
            .iter()
            .flat_map(|content| &content.uploads)
            .map(|upload| (upload.digest, upload))
            .collect();
        let missing: Vec<&Upload> =
            stream::iter(all.into_values())
                .map(|upload| async move {
                    Ok::<_, Failure>((!relay.has(&upload.digest).await?).then_some(upload))
                })
                .buffer_unordered(UPLOADS)
                .try_filter_map(|upload| async move { Ok(upload) })
                .try_collect()
                .await?;
        let bar = ui.bytes("uploading", missing.iter().map(|upload| upload.bytes).sum());
        let is_list = |upload: &&Upload| {
            contents.iter().any(|content| content.is_folder && content.hash == Some(hash_of(upload.digest)))
        };
        let (last, first): (Vec<_>, Vec<_>) = missing.iter().copied().partition(is_list);
        for group in [first, last] {
            stream::iter(group)
                .map(|upload| put(relay, upload, &bar))
                .buffer_unordered(UPLOADS)
                .try_collect::<()>()
                .await?;
        }
        bar.finish_and_clear();
        for content in contents.iter().filter(|content| !content.uploads.is_empty()) {
            let own = |upload: &&&Upload| content.uploads.iter().any(|own| own.digest == upload.digest);
            let sent: u64 = missing.iter().filter(own).map(|upload| upload.bytes).sum();
            if sent > 0 {
                ui.say(format_args!("uploaded {} as {}", size(sent), content.reference));
            } else {
                ui.detail(format_args!("{} is at the relay already", content.reference));
            }
        }
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

fn not_wasm(flag: &str, what: &str) -> Failure {
    Failure::usage(format_args!("{flag}: {what} is no WebAssembly program: it does not begin with \\0asm"))
        .hint("compile it first; a text (.wat) with wat2wasm")
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

impl FileKind {
    async fn of(path: &Path) -> Self {
        let mut head = Vec::new();
        let Ok(file) = tokio::fs::File::open(path).await else { return Self::Other };
        if file.take(HEAD_BYTES).read_to_end(&mut head).await.is_err() {
            return Self::Other;
        }
        let is_tar = head.get(TAR_MAGIC_AT..).is_some_and(|rest| rest.starts_with(TAR_MAGIC));
        if head.starts_with(WASM_MAGIC) {
            Self::Wasm
        } else if is_tar || COMPRESSED_MAGICS.iter().any(|magic| head.starts_with(magic)) {
            Self::Archive
        } else {
            Self::Other
        }
    }
}

/// A digest as tasks and proofs name it.
pub(crate) fn hash_of(digest: Digest) -> ContentHash {
    ContentHash(B256::from(digest.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn content(text: &str) -> Content {
        Named::look("--input", text).await.unwrap().content(None, u64::MAX).await.unwrap()
    }

    #[tokio::test]
    async fn runtimes_are_inferred_only_where_certain() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("program"), b"\0asm\x01\0\0\0").unwrap();
        std::fs::write(path("text"), b"words").unwrap();
        std::fs::create_dir(path("model")).unwrap();
        let runtime = async |text: &str| Named::look("--model", text).await.unwrap().runtime();
        assert_eq!(runtime(&path("program")).await, Some(Runtime::Wasm));
        assert_eq!(runtime(&path("text")).await, None);
        assert_eq!(runtime(&path("model")).await, Some(Runtime::Embed));
        assert_eq!(runtime("https://a.example/p.wasm?sig=1").await, Some(Runtime::Wasm));
        assert_eq!(runtime("https://a.example/model").await, None);
    }

    #[tokio::test]
    async fn what_a_runtime_cannot_take_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("text.wasm"), b"words").unwrap();
        std::fs::write(path("program"), b"\0asm\x01\0\0\0").unwrap();
        std::fs::create_dir(path("model")).unwrap();
        std::fs::write(path("model/config.json"), b"{}").unwrap();
        for (name, runtime, reason) in [
            ("text.wasm", Runtime::Wasm, "is no WebAssembly program"),
            ("program", Runtime::Embed, "is no folder; embed takes one"),
            ("model", Runtime::Wasm, "is a folder; wasm takes a file"),
            ("model", Runtime::Embed, "has no tokenizer.json, no model.safetensors"),
            ("model", Runtime::Container, "is a folder; container takes an image"),
            ("text.wasm", Runtime::Container, "is no archive of an image"),
            ("program", Runtime::Container, "is no archive of an image"),
        ] {
            let named = Named::look("--model", &path(name)).await.unwrap();
            let failure = named.check_model(runtime).unwrap_err();
            assert!(failure.message().contains(reason), "{name}: {failure:?}");
        }
        let mut tar = vec![0; 512];
        tar[TAR_MAGIC_AT..TAR_MAGIC_AT + TAR_MAGIC.len()].copy_from_slice(TAR_MAGIC);
        for (name, bytes) in [("image.tar", tar.as_slice()), ("image.tar.gz", b"\x1f\x8b\x08")] {
            std::fs::write(path(name), bytes).unwrap();
            let named = Named::look("--model", &path(name)).await.unwrap();
            named.check_model(Runtime::Container).unwrap();
            assert_eq!(named.runtime(), None, "what an archive is of is not certain");
        }
        Named::look("--input", &path("model")).await.unwrap().check_input(Runtime::Container).unwrap();
        let place = format!("artifact://{}/", "ab".repeat(32));
        for input in [path("model"), place] {
            let named = Named::look("--input", &input).await.unwrap();
            let failure = named.check_input(Runtime::Wasm).unwrap_err();
            assert_eq!(failure.message(), format!("--input: {input} is a folder; wasm takes a file"));
        }
        let named = Named::look("--input", &path("text.wasm")).await.unwrap();
        named.check_input(Runtime::Wasm).unwrap();
        let failure = named.content(None, 4).await.unwrap_err();
        assert!(failure.message().ends_with("5 B, of 4 B at most"), "{failure:?}");
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
