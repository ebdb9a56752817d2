//! What names content: references, digests, manifests of folders; and a runtime's parameters.

use std::path::{Component, Path};

use artifact::{Digest, FolderManifest, Reference, ReferenceKind};
use taskmarket::params::Params;
use taskmarket::{ContentHash, Runtime};
use url::Url;

use crate::{Outcome, again};

/// The text of a reference or a digest. What is printed is what was read; what is logged holds no user-info, query or fragment; and
/// the signer's reading agrees with the fetcher's.
pub fn reference(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Refused };
    digest(text);
    let Ok(reference) = text.parse::<Reference>() else { return Outcome::Refused };
    assert_eq!(reference.to_string(), text);
    assert_eq!(reference.as_str(), text);
    assert_eq!(again(&reference), reference);
    redaction(&reference);
    if let Ok(signed) = text.parse::<taskmarket::Reference>() {
        assert_eq!(signed.to_string(), text);
        assert_eq!(again(&signed), signed);
        assert_eq!(signed.is_content_addressed(), reference.is_content_addressed(), "{text}");
        if let ReferenceKind::Artifact { digest, .. } = reference.kind() {
            assert_eq!(signed.artifact().map(|hash| hash.0.0), Some(digest.0), "{text}");
        }
    }
    assert_eq!(reference.digest().is_some(), names_digest(reference.kind()));
    Outcome::Taken
}

/// The bytes of a folder's manifest: one list has one spelling, and none of its paths leads out of the folder.
pub fn folder_manifest(data: &[u8]) -> Outcome {
    let Ok(manifest) = FolderManifest::parse(data) else { return Outcome::Refused };
    assert_eq!(manifest.to_bytes(), data);
    assert_eq!(manifest.digest(), Digest::of(data));
    for entry in manifest.entries() {
        let inside = Path::new(&entry.path).components().all(|part| matches!(part, Component::Normal(_)));
        assert!(inside, "{:?} leads out of its folder", entry.path);
        assert_eq!(manifest.get(&entry.path), Some(entry));
    }
    let backwards = manifest.entries().iter().rev().cloned().collect();
    assert_eq!(FolderManifest::new(backwards), Ok(manifest));
    Outcome::Taken
}

/// The text of a runtime's parameters: what is read has a canonical text that reads alike.
pub fn params(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Refused };
    let mut outcome = Outcome::Refused;
    for runtime in Runtime::ALL {
        let Ok(params) = Params::parse(runtime, text) else { continue };
        let canonical = params.to_canonical();
        assert!(canonical.len() <= text.len(), "{canonical} is longer than {text}");
        assert_eq!(Params::parse(runtime, &canonical).as_ref(), Ok(&params), "{text} became {canonical}");
        outcome = Outcome::Taken;
    }
    outcome
}

/// A digest is read alike by those who sign it and by those who fetch by it, and prints as 64 hex digits.
fn digest(text: &str) {
    let digest = text.parse::<Digest>().ok();
    let hash = text.parse::<ContentHash>().ok();
    assert_eq!(digest.map(|digest| digest.0), hash.map(|hash| hash.0.0), "{text:?}");
    if let Some(digest) = digest {
        let printed = digest.to_string();
        assert!(printed.len() == 64 && printed.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        assert_eq!(printed.parse(), Ok(digest));
        assert_eq!(again(&digest), digest);
    }
}

/// Asserts that nothing that may be a secret is left in what is logged.
fn redaction(reference: &Reference) {
    let ReferenceKind::Web { url, .. } = reference.kind() else { return };
    let redacted = reference.redacted();
    assert!(format!("{reference:?}").contains(&redacted));
    assert!(!redacted.contains(['?', '#']), "{redacted}");
    let authority = redacted.split('/').nth(2).unwrap_or_default();
    assert!(!authority.contains('@'), "{redacted}");
    let shown = Url::parse(&redacted).expect("a redacted URL is one");
    assert_eq!((shown.host(), shown.port(), shown.path()), (url.host(), url.port(), url.path()));
    let again: Reference = redacted.parse().expect("a redacted reference is one");
    assert_eq!(again.redacted(), redacted);
}

fn names_digest(kind: &ReferenceKind) -> bool {
    match kind {
        ReferenceKind::Artifact { .. } | ReferenceKind::Oci { .. } => true,
        ReferenceKind::Web { .. }
        | ReferenceKind::File { .. }
        | ReferenceKind::Ipfs { .. }
        | ReferenceKind::Model { .. } => false,
    }
}
