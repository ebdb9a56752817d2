//! References to content: how tasks name models, inputs and results.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::digest::Digest;

/// The longest reference that is read, in bytes; the usual limit of URLs in practice.
const MAX_REFERENCE_BYTES: usize = 4096;

/// The longest id of a model, in bytes: what a host may offer.
const MAX_MODEL_ID_BYTES: usize = 256;

const SCHEMES: &str = "it starts with artifact://, https://, http://, file://, ipfs://, oci:// or model://";

/// A reference to a file or a folder. Prints exactly as it was written, which may include the
/// credentials in a URL: logs and errors use [`Reference::redacted`], as does `Debug`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    text: String,
    kind: ReferenceKind,
}

/// What a [`Reference`] points to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ReferenceKind {
    /// `artifact://<sha256>`: a blob in the relay's store. With a slash at the end (`folder`), the digest
    /// names a [`crate::FolderManifest`] there.
    Artifact {
        /// SHA-256 of the blob or of the manifest.
        digest: Digest,
        /// Whether a folder is meant.
        folder: bool,
    },
    /// `https://…` or `http://…`; a path that ends in a slash (`folder`) is a place to which file names are added.
    Web {
        /// The URL, user-info and query included.
        url: Url,
        /// Whether a folder is meant.
        folder: bool,
    },
    /// `file:///…`: a file or a folder of this machine; a slash at the end (`folder`) insists on a folder.
    File {
        /// The absolute path.
        path: PathBuf,
        /// Whether a folder is meant for certain.
        folder: bool,
    },
    /// `ipfs://<cid>[/path]`.
    Ipfs {
        /// The content identifier, version 0 or 1.
        cid: String,
        /// The path below it, without a slash at the start; may be empty.
        path: String,
    },
    /// `oci://<image>@sha256:<digest>`.
    Oci {
        /// The image's name, with registry and repository.
        image: String,
        /// SHA-256 of the image's manifest.
        digest: Digest,
    },
    /// `model://<id>`: a model that an engine of a node serves under this id. It names no bytes and is never fetched.
    Model {
        /// The id, as requests to the engine name it.
        id: String,
    },
}

/// The text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a reference: {reason}")]
pub struct ParseReferenceError {
    reason: String,
}

impl Reference {
    /// What it points to.
    pub fn kind(&self) -> &ReferenceKind {
        &self.kind
    }

    /// Exactly as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As written, without the parts of a URL that may hold secrets (user-info, query, fragment).
    pub fn redacted(&self) -> String {
        match &self.kind {
            ReferenceKind::Web { .. } => redact_url(&self.text),
            ReferenceKind::Artifact { .. }
            | ReferenceKind::File { .. }
            | ReferenceKind::Ipfs { .. }
            | ReferenceKind::Oci { .. }
            | ReferenceKind::Model { .. } => self.text.clone(),
        }
    }

    /// Whether the reference says by its form that it names a folder.
    pub fn is_folder(&self) -> bool {
        match &self.kind {
            ReferenceKind::Artifact { folder, .. }
            | ReferenceKind::Web { folder, .. }
            | ReferenceKind::File { folder, .. } => *folder,
            ReferenceKind::Ipfs { path, .. } => path.ends_with('/'),
            ReferenceKind::Oci { .. } | ReferenceKind::Model { .. } => false,
        }
    }

    /// The SHA-256 that the reference itself carries, if it does: of the file, of the folder's manifest
    /// or of the image's manifest. For the name of a model it is the SHA-256 of the id, which stands for the model's hash.
    pub fn digest(&self) -> Option<Digest> {
        match &self.kind {
            ReferenceKind::Artifact { digest, .. } | ReferenceKind::Oci { digest, .. } => Some(*digest),
            ReferenceKind::Model { id } => Some(Digest::of(id.as_bytes())),
            ReferenceKind::Web { .. } | ReferenceKind::File { .. } | ReferenceKind::Ipfs { .. } => None,
        }
    }

    /// Whether the reference always names the same bytes (a digest or a CID).
    pub fn is_content_addressed(&self) -> bool {
        match &self.kind {
            ReferenceKind::Artifact { .. } | ReferenceKind::Ipfs { .. } | ReferenceKind::Oci { .. } => true,
            ReferenceKind::Web { .. } | ReferenceKind::File { .. } | ReferenceKind::Model { .. } => false,
        }
    }

    /// The reference to the blob `digest` in the relay's store.
    pub fn artifact(digest: Digest) -> Self {
        Self { text: format!("artifact://{digest}"), kind: ReferenceKind::Artifact { digest, folder: false } }
    }

    /// The reference to the folder in the relay's store whose manifest is `digest`.
    pub fn artifact_folder(digest: Digest) -> Self {
        Self { text: format!("artifact://{digest}/"), kind: ReferenceKind::Artifact { digest, folder: true } }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference({})", self.redacted())
    }
}

impl TryFrom<String> for Reference {
    type Error = ParseReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.text
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(bad(format!("longer than {MAX_REFERENCE_BYTES} bytes")));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(bad("it holds white space or control characters; write them as %20 and the like"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad(SCHEMES));
        };
        let kind = match scheme.to_ascii_lowercase().as_str() {
            "artifact" => parse_artifact(rest)?,
            "https" | "http" => parse_web(text)?,
            "file" => parse_file(text)?,
            "ipfs" => parse_ipfs(rest)?,
            "oci" => parse_oci(rest)?,
            "model" => parse_model(rest)?,
            _ => return Err(bad(SCHEMES)),
        };
        Ok(Self { text: text.to_owned(), kind })
    }
}

/// `text` without the user-info, query and fragment of a URL; something harmless if it is no URL.
pub(crate) fn redact_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return "(not a URL)".to_owned() };
    if url.cannot_be_a_base() {
        return format!("{}:(not a URL of a server)", url.scheme());
    }
    // Both fail only for URLs without a host, which have no user-info to remove.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn bad(reason: impl Into<String>) -> ParseReferenceError {
    ParseReferenceError { reason: reason.into() }
}

fn parse_artifact(rest: &str) -> Result<ReferenceKind, ParseReferenceError> {
    let (digits, folder) = match rest.strip_suffix('/') {
        Some(digits) => (digits, true),
        None => (rest, false),
    };
    let digest = digits.parse().map_err(|e| bad(format!("artifact://<sha256>: {e}")))?;
    Ok(ReferenceKind::Artifact { digest, folder })
}

fn parse_web(text: &str) -> Result<ReferenceKind, ParseReferenceError> {
    let url = Url::parse(text).map_err(|e| bad(e.to_string()))?;
    let folder = url.path().ends_with('/');
    Ok(ReferenceKind::Web { url, folder })
}

fn parse_file(text: &str) -> Result<ReferenceKind, ParseReferenceError> {
    let url = Url::parse(text).map_err(|e| bad(e.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("? and # in a path of a file:// reference are written as %3F and %23"));
    }
    let path = url.to_file_path().map_err(|()| bad("file:///path names an absolute path of this machine"))?;
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(bad("a path cannot hold a NUL"));
    }
    Ok(ReferenceKind::File { path, folder: url.path().ends_with('/') })
}

fn parse_ipfs(rest: &str) -> Result<ReferenceKind, ParseReferenceError> {
    let (cid, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !looks_like_cid(cid) {
        return Err(bad("ipfs://<cid>[/path] with a CID of version 0 or 1"));
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(bad("the path below a CID has no . or .. in it"));
    }
    Ok(ReferenceKind::Ipfs { cid: cid.to_owned(), path: path.to_owned() })
}

/// The shape of a CID: version 0 (base58 SHA-256), or version 1 in base32, base58 or base16.
fn looks_like_cid(cid: &str) -> bool {
    let base58 =
        |s: &str| s.chars().all(|c| c.is_ascii_alphanumeric() && !matches!(c, '0' | 'O' | 'I' | 'l'));
    if cid.len() == 46 && cid.starts_with("Qm") {
        return base58(cid);
    }
    if !cid.is_ascii() || !(8..=256).contains(&cid.len()) {
        return false;
    }
    let (base, digits) = cid.split_at(1);
    match base {
        "b" => digits.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7')),
        "z" => base58(digits),
        "f" => digits.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')),
        _ => false,
    }
}

fn parse_oci(rest: &str) -> Result<ReferenceKind, ParseReferenceError> {
    let form = || bad("oci://<image>@sha256:<64 hex digits>");
    let (image, digits) = rest.split_once("@sha256:").ok_or_else(form)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':');
    let whole = !image.is_empty() && !image.split('/').any(str::is_empty);
    if !whole || !image.chars().all(fits) || digits.starts_with("0x") {
        return Err(form());
    }
    Ok(ReferenceKind::Oci { image: image.to_owned(), digest: digits.parse().map_err(|_| form())? })
}

fn parse_model(id: &str) -> Result<ReferenceKind, ParseReferenceError> {
    if id.is_empty() || id.len() > MAX_MODEL_ID_BYTES {
        return Err(bad(format!("model://<id> with an id of 1 to {MAX_MODEL_ID_BYTES} bytes")));
    }
    Ok(ReferenceKind::Model { id: id.to_owned() })
}

impl fmt::Debug for ReferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact { digest, folder } => write!(f, "Artifact({digest}, folder: {folder})"),
            Self::Web { url, folder } => write!(f, "Web({}, folder: {folder})", redact_url(url.as_str())),
            Self::File { path, folder } => write!(f, "File({}, folder: {folder})", path.display()),
            Self::Ipfs { cid, path } => write!(f, "Ipfs({cid}, {path})"),
            Self::Oci { image, digest } => write!(f, "Oci({image}, {digest})"),
            Self::Model { id } => write!(f, "Model({id})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn prints_what_was_written() {
        for (text, folder) in [
            (format!("artifact://{D}"), false),
            (format!("artifact://{D}/"), true),
            (format!("artifact://0x{}", D.to_uppercase()), false),
            ("https://Example.org:443/a b".replace(' ', "%20"), false),
            ("https://example.org".into(), true),
            ("http://127.0.0.1:80/x/?token=1".into(), true),
            ("file:///tmp/a%20b".into(), false),
            ("file:///tmp/".into(), true),
            ("ipfs://QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG/readme".into(), false),
            ("ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi".into(), false),
            (format!("oci://ghcr.io/some/image@sha256:{D}"), false),
            ("model://meta-llama/Llama-3:8b".into(), false),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((reference.to_string(), reference.is_folder()), (text, folder));
        }
        let digest = D.parse().unwrap();
        assert_eq!(Reference::artifact(digest), format!("artifact://{D}").parse().unwrap());
        let model: Reference = "model://zorai-demo".parse().unwrap();
        assert_eq!(model.digest(), Some(Digest::of(b"zorai-demo")));
        assert_eq!(Reference::artifact_folder(digest), format!("artifact://{D}/").parse().unwrap());
    }

    #[test]
    fn malformed_references_are_refused() {
        for text in [
            "",
            "/etc/passwd",
            "artifact://",
            "artifact://abc",
            &format!("artifact://{D}//"),
            &format!("artifact://{D}/x"),
            "https://",
            "https://exa mple.org/",
            "https://example.org/\n",
            "file://relative",
            "file://host/share",
            "file:///a%00b",
            "file:///a?b",
            "ftp://example.org/x",
            "javascript://x",
            "ipfs://notacid",
            "ipfs://",
            "ipfs://QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG/../x",
            "model://",
            "model://a b",
            &format!("model://{}", "x".repeat(MAX_MODEL_ID_BYTES + 1)),
            "oci://image:latest",
            "oci://@sha256:00",
            &format!("oci://a//b@sha256:{D}"),
            &format!("https://example.org/{}", "x".repeat(MAX_REFERENCE_BYTES)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_stay_out_of_debug_and_redacted() {
        let reference: Reference = "https://user:pw@example.org/m?sig=pw#pw".parse().unwrap();
        assert_eq!(reference.redacted(), "https://example.org/m");
        assert!(!format!("{reference:?} {:?}", reference.kind()).contains("pw"));
    }

    proptest::proptest! {
        #[test]
        fn hostile_text_never_panics(text in "\\PC{0,80}", scheme in 0_usize..7) {
            let scheme = ["artifact", "https", "http", "file", "ipfs", "oci", "model"][scheme];
            for text in [text.clone(), format!("{scheme}://{text}")] {
                if let Ok(reference) = text.parse::<Reference>() {
                    proptest::prop_assert_eq!(reference.to_string(), text);
                    let _ = reference.redacted();
                }
            }
        }
    }
}
