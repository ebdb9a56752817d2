//! Container images: which variant of one is wanted, what of it is here, and how a container engine loads it.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use crate::digest::Digest;
use crate::error::{ContentError, FetchError};
use crate::fetch::{Call, LocalFile};
use crate::meter::Meter;
use crate::reference::{Reference, ReferenceKind};
use crate::registry::{Registry, Source};

/// The largest manifest, index or configuration that is read, in bytes; registries take no larger manifests.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// The most layers of an image; engines stop at about half of it.
const MAX_LAYERS: usize = 256;
/// The kinds of layers that engines unpack.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a container image is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The processor, in the words of images: `amd64`, `arm64`.
    pub architecture: String,
}

/// An image that is here whole, each part checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// What it is made for.
    pub platform: Platform,
    /// The manifest of this platform's variant. Its digest is the reference's, unless that names an index of variants.
    pub manifest: LocalFile,
    /// The manifest's media type.
    pub media_type: String,
    /// The configuration. Its digest is the image's id in most engines.
    pub config: LocalFile,
    /// The layers, the lowest first.
    pub layers: Vec<LocalFile>,
}

/// An index of variants or a manifest of one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Made>,
}

/// What something is made for, as documents of images say it.
#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    made: Made,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Platform {
    /// Linux on this machine's processor, which is what container engines here run.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned() }
    }

    fn is(&self, made: &Made) -> bool {
        self.os == made.os && self.architecture == made.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl LocalImage {
    /// All its files, for [`crate::BlobStore::keep`].
    pub fn files(&self) -> impl Iterator<Item = &LocalFile> {
        [&self.manifest, &self.config].into_iter().chain(&self.layers)
    }

    /// Writes the image into the new folder `dir` as an OCI layout that is also a docker-archive once it is put into a tar, so
    /// that any engine loads it. The blobs are hard links into the store where the file system permits, and copies otherwise:
    /// to be read only. Blocks on the file system.
    pub fn write_layout(&self, dir: &Path) -> io::Result<()> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        for file in self.files() {
            let to = blobs.join(file.digest.to_string());
            match std::fs::hard_link(&file.path, &to) {
                // One layer can come twice in an image.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => std::fs::copy(&file.path, &to).map(|_| ())?,
                Ok(()) => {}
            }
        }
        let place = |file: &LocalFile| format!("blobs/sha256/{}", file.digest);
        let layers: Vec<_> = self.layers.iter().map(place).collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": self.media_type,
                "digest": format!("sha256:{}", self.manifest.digest),
                "size": self.manifest.size,
                "platform": { "os": self.platform.os, "architecture": self.platform.architecture },
            }],
        });
        let archive = json!([{ "Config": place(&self.config), "RepoTags": null, "Layers": layers }]);
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        std::fs::write(dir.join("index.json"), index.to_string())?;
        std::fs::write(dir.join("manifest.json"), archive.to_string())
    }
}

impl Call<'_> {
    pub(crate) async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<LocalImage, FetchError> {
        let ReferenceKind::Oci { image, digest } = reference.kind() else {
            return Err(self.bad("it names no container image; those start with oci://"));
        };
        let mut registry = Registry::new(self, image)?;
        let (mut manifest, mut document) = self.document(&mut registry, *digest).await?;
        if let Some(variants) = &document.manifests {
            let digest = self.variant(variants, platform)?;
            (manifest, document) = self.document(&mut registry, digest).await?;
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(self.bad_image("its manifest names no configuration and no layers"));
        };
        let media_type = document.media_type.unwrap_or_else(|| MANIFEST_TYPE.to_owned());
        let config = self.config(&mut registry, &config, platform, layers.len()).await?;
        let layers = self.layers(&mut registry, &layers).await?;
        Ok(LocalImage { platform: platform.clone(), manifest, media_type, config, layers })
    }

    /// An index or a manifest.
    async fn document(
        &self,
        registry: &mut Registry<'_>,
        digest: Digest,
    ) -> Result<(LocalFile, Document), FetchError> {
        let file = self.small(registry, Source::Manifest, digest).await?;
        let read = serde_json::from_slice(&self.read(&file.path).await?);
        let document = read.map_err(|e| self.bad_image(&format!("its manifest cannot be read: {e}")))?;
        Ok((file, document))
    }

    async fn small(
        &self,
        registry: &mut Registry<'_>,
        source: Source,
        digest: Digest,
    ) -> Result<LocalFile, FetchError> {
        let unseen = Meter::new(MAX_DOCUMENT_BYTES, None, &|_, _| {});
        let file = match self.stored(digest).await? {
            Some(file) => file,
            None => registry.fetch(source, digest, MAX_DOCUMENT_BYTES, &unseen).await?,
        };
        if file.size > MAX_DOCUMENT_BYTES {
            return Err(self.bad_image("a manifest or configuration is too long"));
        }
        Ok(file)
    }

    fn variant(&self, variants: &[Descriptor], platform: &Platform) -> Result<Digest, FetchError> {
        let made = |variant: &Descriptor| variant.platform.as_ref().is_some_and(|made| platform.is(made));
        if let Some(variant) = variants.iter().find(|variant| made(variant)) {
            return self.digest_of(variant);
        }
        let mut offered: Vec<String> = Vec::new();
        for made in variants.iter().filter_map(|variant| variant.platform.as_ref()) {
            let text = short(&format!("{}/{}", made.os, made.architecture));
            // Attestations are listed as variants for an unknown platform.
            if text != "unknown/unknown" && !offered.contains(&text) && offered.len() < 8 {
                offered.push(text);
            }
        }
        Err(self.no_platform(platform, &offered.join(", ")))
    }

    async fn config(
        &self,
        registry: &mut Registry<'_>,
        descriptor: &Descriptor,
        platform: &Platform,
        layers: usize,
    ) -> Result<LocalFile, FetchError> {
        let file = self.small(registry, Source::Blob, self.digest_of(descriptor)?).await?;
        if file.size != descriptor.size {
            return Err(self.bad_image("its configuration has another size than listed"));
        }
        let read = serde_json::from_slice(&self.read(&file.path).await?);
        let config: Config =
            read.map_err(|e| self.bad_image(&format!("its configuration cannot be read: {e}")))?;
        if !platform.is(&config.made) {
            let made = short(&format!("{}/{}", config.made.os, config.made.architecture));
            return Err(self.no_platform(platform, &made));
        }
        if config.rootfs.diff_ids.len() != layers {
            return Err(self.bad_image("its configuration lists another number of layers"));
        }
        Ok(file)
    }

    async fn layers(
        &self,
        registry: &mut Registry<'_>,
        layers: &[Descriptor],
    ) -> Result<Vec<LocalFile>, FetchError> {
        if layers.len() > MAX_LAYERS {
            return Err(self.bad_image("it has too many layers"));
        }
        let mut wanted = Vec::new();
        let mut total = 0_u64;
        for layer in layers {
            if !LAYER_TYPES.contains(&layer.media_type.as_str()) {
                let kind = short(&layer.media_type);
                return Err(self.bad_image(&format!("a layer is of a kind that is not read here: {kind}")));
            }
            total = total.saturating_add(layer.size);
            wanted.push((self.digest_of(layer)?, layer.size));
        }
        self.check_size(total)?;
        let meter = self.meter(Some(total));
        let mut missing = Vec::new();
        for (digest, size) in &wanted {
            match self.stored(*digest).await? {
                // The total is within the limit.
                Some(file) => drop(meter.add(file.size)),
                None if missing.contains(&(*digest, *size)) => drop(meter.add(*size)),
                None => missing.push((*digest, *size)),
            }
        }
        registry.fetch_blobs(&missing, &meter).await?;
        let mut files = Vec::new();
        for (digest, size) in wanted {
            match self.stored(digest).await? {
                Some(file) if file.size == size => files.push(file),
                Some(_) => return Err(self.bad_image("a layer has another size than listed")),
                None => return Err(self.io(io::Error::other("a layer was removed while others came"))),
            }
        }
        Ok(files)
    }

    fn digest_of(&self, descriptor: &Descriptor) -> Result<Digest, FetchError> {
        let digits = descriptor.digest.strip_prefix("sha256:");
        let digest = digits.and_then(|digits| digits.parse().ok());
        digest.ok_or_else(|| self.bad_image("a part is named by another hash than SHA-256"))
    }

    fn bad_image(&self, reason: &str) -> FetchError {
        self.bad_manifest(ContentError::BadImage { reason: reason.to_owned() })
    }

    fn no_platform(&self, platform: &Platform, offered: &str) -> FetchError {
        let offered = if offered.is_empty() { "nothing that is named" } else { offered }.to_owned();
        self.bad_manifest(ContentError::NoPlatform { platform: platform.to_string(), offered })
    }
}

/// The start of a stranger's text, for messages.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
