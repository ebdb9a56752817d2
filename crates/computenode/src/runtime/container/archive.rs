//! Images as files, checked before an engine sees any of them: `docker save`'s archive or an OCI layout in a tar, or the
//! parts that came from a registry.
//!
//! Only what was checked goes on to the engine, in an archive that is made anew: the configuration, and the layers whose
//! digests the configuration states. Names, tags, links and other images of a file stay behind.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};
use std::sync::Arc;

use artifact::LocalImage;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::engine;
use crate::runtime::{RunCode, RunError, Stop};

/// The most entries of an archive.
const MAX_ENTRIES: usize = 10_000;

/// The most layers of an image: engines allow no more.
const MAX_LAYERS: usize = 127;

/// The largest configuration or manifest, in bytes.
const MAX_JSON_BYTES: u64 = 4 << 20;

/// The most indexes, manifests and configurations that are read to find an image in an archive.
const MAX_DOCUMENTS: usize = 128;

/// How much is read at once.
const CHUNK: usize = 256 << 10;

/// An image that was checked.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Image {
    config: Vec<u8>,
    layers: Vec<Layer>,
    /// The digests of its layers, unpacked, as `sha256:` and hex.
    pub(super) diff_ids: Vec<String>,
}

/// A layer that was checked.
#[derive(Debug)]
struct Layer {
    place: Place,
    /// Its size when unpacked, if it is compressed with zstd, which not all engines unpack.
    zstd: Option<u64>,
}

/// Where a part of an image lies in a file.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<Path>,
    offset: u64,
    size: u64,
}

impl Place {
    fn open(&self) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file.take(self.size))
    }
}

/// What an image has to be.
pub(super) struct Wanted<'a> {
    /// As images name it.
    pub(super) architecture: &'a str,
    /// The most bytes that its layers may unpack to.
    pub(super) bytes: u64,
    pub(super) stop: &'a Stop,
}

/// Checks the image in the file at `path`. Reads all of it.
pub(super) fn check(path: &Path, wanted: &Wanted<'_>) -> Result<Image, RunError> {
    let archive = Archive::list(path, wanted.stop)?;
    let described = if archive.places.contains_key("manifest.json") {
        archive.docker()?
    } else if archive.places.contains_key("index.json") {
        archive.oci(wanted)?
    } else {
        return Err(bad("it holds neither manifest.json nor index.json: it is no image archive"));
    };
    platform_fits(&described.config()?, wanted)?;
    check_layers(described, wanted)
}

/// Checks an image whose parts were fetched, and are what their digests name. Reads all of them.
pub(super) fn check_parts(image: &LocalImage, wanted: &Wanted<'_>) -> Result<Image, RunError> {
    let place =
        |file: &artifact::LocalFile| Place { file: file.path.as_path().into(), offset: 0, size: file.size };
    let config = read(&place(&image.config), "its configuration")?;
    let layers = image.layers.iter().map(|layer| (place(layer), None)).collect();
    let described = Described { config, layers };
    platform_fits(&described.config()?, wanted)?;
    check_layers(described, wanted)
}

/// Writes `image` as an archive in which it is called `tag`.
pub(super) fn write(image: &Image, tag: &str, to: impl Write) -> io::Result<()> {
    let names: Vec<String> = (0..image.layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": names }]).to_string();
    let mut builder = tar::Builder::new(to);
    let mut add = |name: &str, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content)
    };
    add("manifest.json", manifest.len() as u64, &mut manifest.as_bytes())?;
    add("config.json", image.config.len() as u64, &mut image.config.as_slice())?;
    for (name, Layer { place, zstd }) in names.iter().zip(&image.layers) {
        let mut stored = BufReader::with_capacity(CHUNK, place.open()?);
        match zstd {
            None => add(name, place.size, &mut stored)?,
            Some(size) => add(name, *size, &mut zstd::Decoder::with_buffer(stored)?.take(*size))?,
        }
    }
    builder.into_inner()?.flush()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An image as its archive describes it.
struct Described {
    config: Vec<u8>,
    /// Its layers, with the digest of what is stored, if the format has one.
    layers: Vec<(Place, Option<String>)>,
}

impl Described {
    fn config(&self) -> Result<Config, RunError> {
        parse(&self.config, "the image's configuration")
    }
}

/// The regular files of an archive, by name.
struct Archive {
    places: HashMap<String, Place>,
}

impl Archive {
    fn list(path: &Path, stop: &Stop) -> Result<Self, RunError> {
        let broken = |error: io::Error| bad(format!("it is no tar archive: {error}"));
        let file = File::open(path).map_err(|error| bad(format!("cannot read the image: {error}")))?;
        let whole: Arc<Path> = path.into();
        let mut places = HashMap::new();
        let length = file.metadata().map_err(broken)?.len();
        let mut archive = tar::Archive::new(&file);
        // Raw, because long names and other extensions would be read into memory, however long. What an engine exports
        // needs none of them.
        for (number, entry) in archive.entries_with_seek().map_err(broken)?.raw(true).enumerate() {
            stop.check()?;
            if number >= MAX_ENTRIES {
                return Err(bad(format!("it holds more than {MAX_ENTRIES} entries")));
            }
            let entry = entry.map_err(broken)?;
            let kind = entry.header().entry_type();
            let path = entry.path().map_err(broken)?;
            let name = plain_name(&path)?;
            let place =
                Place { file: Arc::clone(&whole), offset: entry.raw_file_position(), size: entry.size() };
            if place.offset.checked_add(place.size).is_none_or(|end| end > length) {
                return Err(bad(format!("{name} is cut off")));
            }
            if kind.is_file() {
                if places.insert(name.clone(), place).is_some() {
                    return Err(bad(format!("it holds {name} twice")));
                }
            } else if kind.is_hard_link()
                || kind.is_character_special()
                || kind.is_block_special()
                || kind.is_fifo()
            {
                return Err(bad(format!("{name} is a link or a device; an image is made of files")));
            }
        }
        Ok(Self { places })
    }

    /// The one image of an archive as `docker save` makes it.
    fn docker(&self) -> Result<Described, RunError> {
        let manifest = self.json("manifest.json")?;
        let mut images: Vec<DockerImage> = parse(&manifest, "manifest.json")?;
        let image = match (images.pop(), images.len()) {
            (Some(image), 0) => image,
            (_, others) => return Err(bad(format!("it holds {} images; a task has one", others + 1))),
        };
        let config = self.json(&image.config)?;
        check_name(&image.config, &config)?;
        let layers = image.layers.iter().map(|name| self.named_place(name));
        Ok(Described { config, layers: layers.collect::<Result<_, RunError>>()? })
    }

    /// The one image of an OCI layout that is made for this machine.
    fn oci(&self, wanted: &Wanted<'_>) -> Result<Described, RunError> {
        // What leads to what is a stranger's word: each document is read, used and let go before the next.
        let mut documents = 0;
        let (mut some, mut fitting) = (false, None);
        let mut indexes = Vec::new();
        let mut next = Some(self.json("index.json")?);
        while let Some(index) = next {
            let index: Index = parse(&index, "an index")?;
            for entry in index.manifests {
                wanted.stop.check()?;
                // What was recorded about an image, such as how it was built, hangs below a platform of that name.
                if entry.platform.is_some_and(|platform| platform.os == "unknown") {
                    continue;
                }
                if entry.media_type.contains("index") || entry.media_type.contains("manifest.list") {
                    indexes.push(entry.digest);
                    check_count(documents + indexes.len())?;
                    continue;
                }
                some = true;
                let manifest: Manifest = parse(&self.blob(&entry.digest, &mut documents)?, "a manifest")?;
                let config = self.blob(&manifest.config.digest, &mut documents)?;
                let described = Described { config, layers: Vec::new() };
                if platform_fits(&described.config()?, wanted).is_err() {
                    continue;
                }
                let layers = manifest.layers.iter().map(|layer| self.named_place(&blob_name(&layer.digest)?));
                let layers = layers.collect::<Result<_, RunError>>()?;
                if fitting.replace(Described { layers, ..described }).is_some() {
                    return Err(bad("it holds several images for this machine; a task has one"));
                }
            }
            next = indexes.pop().map(|digest| self.blob(&digest, &mut documents)).transpose()?;
        }
        fitting.ok_or_else(|| {
            if some { without_platform("it holds no image", wanted) } else { bad("it holds no image") }
        })
    }

    /// A blob of an OCI layout that is JSON, checked against its digest.
    fn blob(&self, digest: &str, documents: &mut usize) -> Result<Vec<u8>, RunError> {
        *documents += 1;
        check_count(*documents)?;
        let name = blob_name(digest)?;
        let content = self.json(&name)?;
        check_name(&name, &content)?;
        Ok(content)
    }

    fn json(&self, name: &str) -> Result<Vec<u8>, RunError> {
        read(&self.place(name)?, name)
    }

    fn place(&self, name: &str) -> Result<Place, RunError> {
        self.places.get(name).cloned().ok_or_else(|| bad(format!("it names the file {name}, and lacks it")))
    }

    /// A layer, with the digest that its name states.
    fn named_place(&self, name: &str) -> Result<(Place, Option<String>), RunError> {
        Ok((self.place(name)?, named_digest(name)))
    }
}

fn check_count(documents: usize) -> Result<(), RunError> {
    if documents <= MAX_DOCUMENTS {
        return Ok(());
    }
    Err(bad(format!("it leads to more than {MAX_DOCUMENTS} indexes, manifests and configurations")))
}

/// Reads a configuration, a manifest or an index.
fn read(place: &Place, name: &str) -> Result<Vec<u8>, RunError> {
    if place.size > MAX_JSON_BYTES {
        return Err(bad(format!("{name} is larger than {MAX_JSON_BYTES} bytes")));
    }
    let mut content = Vec::new();
    let read = place.open().and_then(|mut reader| reader.read_to_end(&mut content));
    read.map_err(|error| bad(format!("cannot read {name}: {error}")))?;
    Ok(content)
}

/// Reads all layers, and holds them against their digests.
fn check_layers(image: Described, wanted: &Wanted<'_>) -> Result<Image, RunError> {
    let diff_ids = image.config()?.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() || diff_ids.len() > MAX_LAYERS {
        return Err(bad(format!(
            "its configuration names {} layers, and it holds {}; at most {MAX_LAYERS} are taken",
            diff_ids.len(),
            image.layers.len()
        )));
    }
    let mut room = wanted.bytes;
    let mut layers = Vec::new();
    for (number, ((place, stored), diff_id)) in image.layers.into_iter().zip(&diff_ids).enumerate() {
        let before = room;
        let digests = digests(&place, &mut room, wanted)?;
        let stored_fits = stored.is_none_or(|stored| stored == digests.stored);
        if !stored_fits || *diff_id != format!("sha256:{}", digests.unpacked) {
            return Err(bad(format!("layer {number} is not the one that its digest names")));
        }
        layers.push(Layer { place, zstd: digests.zstd.then_some(before - room) });
    }
    Ok(Image { config: image.config, layers, diff_ids })
}

/// The digests of a layer. What it unpacks to is taken from `room`.
fn digests(place: &Place, room: &mut u64, wanted: &Wanted<'_>) -> Result<Digests, RunError> {
    let broken = |error: io::Error| bad(format!("a layer cannot be unpacked: {error}"));
    let stored = Hashed { inner: place.open().map_err(broken)?, hasher: Sha256::new() };
    let mut stored = BufReader::with_capacity(CHUNK, stored);
    let magic = io::BufRead::fill_buf(&mut stored).map_err(broken)?;
    let (zstd, gzip) = (magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), magic.starts_with(&[0x1f, 0x8b]));
    let mut unpacked = Sha256::new();
    let mut count = |reader: &mut dyn Read| {
        let mut chunk = vec![0; CHUNK];
        loop {
            wanted.stop.check()?;
            let read = reader.read(&mut chunk).map_err(broken)?;
            if read == 0 {
                return Ok::<(), RunError>(());
            }
            *room = room
                .checked_sub(read as u64)
                .ok_or_else(|| bad(format!("the image unpacks to more than {} bytes", wanted.bytes)))?;
            unpacked.update(&chunk[..read]);
        }
    };
    if zstd {
        count(&mut zstd::Decoder::with_buffer(&mut stored).map_err(broken)?)?;
    } else if gzip {
        count(&mut flate2::bufread::MultiGzDecoder::new(&mut stored))?;
    } else {
        count(&mut stored)?;
    }
    // What stands behind the compressed data belongs to the stored digest too.
    io::copy(&mut stored, &mut io::sink()).map_err(broken)?;
    let stored = hex::encode(stored.into_inner().hasher.finalize());
    Ok(Digests { stored, unpacked: hex::encode(unpacked.finalize()), zstd })
}

struct Digests {
    stored: String,
    unpacked: String,
    zstd: bool,
}

/// A reader that hashes what is read.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

fn bad(reason: impl Into<String>) -> RunError {
    RunError::new(RunCode::BadModel, reason)
}

fn without_platform(what: &str, wanted: &Wanted<'_>) -> RunError {
    let reason = format!("{what} for linux/{}, which this machine is", wanted.architecture);
    RunError::new(RunCode::ImageWithoutPlatform, reason)
}

fn platform_fits(config: &Config, wanted: &Wanted<'_>) -> Result<(), RunError> {
    let Platform { os, architecture } = &config.platform;
    if os == "linux" && engine::architecture(architecture) == wanted.architecture {
        return Ok(());
    }
    Err(without_platform(&format!("the image is for {os}/{architecture}, not"), wanted))
}

fn parse<T: DeserializeOwned>(content: &[u8], what: &str) -> Result<T, RunError> {
    serde_json::from_slice(content).map_err(|error| bad(format!("{what} is malformed: {error}")))
}

/// The name of an entry, which must lead nowhere else.
fn plain_name(path: &Path) -> Result<String, RunError> {
    let text = path.to_str().ok_or_else(|| bad("a name in it is no UTF-8"))?;
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(bad(format!("the name {text:?} leads out of it")));
            }
        }
    }
    Ok(parts.join("/"))
}

/// The file of an OCI layout that a digest names.
fn blob_name(digest: &str) -> Result<String, RunError> {
    let digits = digest.strip_prefix("sha256:").filter(|digits| is_digest(digits));
    let digits = digits.ok_or_else(|| bad(format!("{digest:?} is no SHA-256 digest")))?;
    Ok(format!("blobs/sha256/{digits}"))
}

fn is_digest(digits: &str) -> bool {
    digits.len() == 64 && digits.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

/// The digest that a blob's name states.
fn named_digest(name: &str) -> Option<String> {
    name.strip_prefix("blobs/sha256/").filter(|digits| is_digest(digits)).map(str::to_owned)
}

/// Engines name a configuration by its digest: `<digest>.json` or `blobs/sha256/<digest>`.
fn check_name(name: &str, content: &[u8]) -> Result<(), RunError> {
    let stated = name.strip_suffix(".json").filter(|digits| is_digest(digits)).map(str::to_owned);
    match stated.or_else(|| named_digest(name)) {
        Some(digest) if digest != hex::encode(Sha256::digest(content)) => {
            Err(bad(format!("{name} is not what its digest names")))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
