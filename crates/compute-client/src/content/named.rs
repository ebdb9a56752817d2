//! What the user names, as it is on the command line: looked at but not read through, and refused where it cannot run.

use std::path::{Path, PathBuf};

use artifact::{Digest, FolderEntry, FolderManifest, ReferenceKind};
use taskmarket::{Reference, Runtime};
use tokio::io::AsyncReadExt as _;

use super::{Content, EMBED_NEEDS, Source, WASM_MAGIC, check_size, embed_manifest};
use crate::failure::{Context as _, Failure, Outcome};

/// What a tar has, and where.
const TAR_MAGIC: &[u8] = b"ustar";
const TAR_MAGIC_AT: usize = 257;
/// What begins a file that gzip or zstd wrote.
const COMPRESSED_MAGICS: [&[u8]; 2] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd"];
/// How much of a file is looked at, in bytes.
const HEAD_BYTES: u64 = 512;
/// What a container's model is.
const IMAGE_HINT: &str = "name an image by its digest, oci://IMAGE@sha256:..., or an archive that `docker save` or `podman save` wrote";
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

fn not_wasm(flag: &str, what: &str) -> Failure {
    Failure::usage(format_args!("{flag}: {what} is no WebAssembly program: it does not begin with \\0asm"))
        .hint("compile it first; a text (.wat) with wat2wasm")
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
}
