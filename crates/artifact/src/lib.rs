//! Content addressing, verified fetch and the blob store.
//!
//! A task names its model, its input and its result by reference. This crate parses the references
//! ([`Reference`]), brings what they name onto this machine ([`Fetcher`]) and keeps it under the
//! SHA-256 of its bytes ([`BlobStore`]). Nothing is handed out before its hash was checked, and a
//! reference from a stranger's task cannot make this machine talk to addresses inside its network
//! ([`FetchPolicy`]).

mod blobs;
mod cache;
mod digest;
mod error;
mod fetch;
mod guard;
mod hops;
mod http;
mod image;
mod ipfs;
mod local;
mod manifest;
mod meter;
mod outbound;
mod policy;
mod reference;
mod registry;
mod room;

pub use blobs::{BlobStore, PutError, Usage};
pub use cache::{Kept, Scrubbed, Trimmed};
pub use digest::{Digest, Hasher, ParseDigestError};
pub use error::{ContentError, FetchError, Unreached, Wait};
pub use fetch::{Fetcher, LocalFile, LocalFolder};
pub use guard::AddressClass;
pub use image::{LocalImage, Platform};
pub use manifest::{FolderEntry, FolderError, FolderManifest, ManifestError};
pub use outbound::{GuardedClient, RefusedAddress, RefusedUrl};
pub use policy::{FetchPolicy, Origin};
pub use reference::{ParseReferenceError, Reference, ReferenceKind};
