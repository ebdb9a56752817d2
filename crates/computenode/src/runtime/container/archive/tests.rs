use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::runtime::Context;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An OCI layout that grows.
#[derive(Default)]
struct Layout(Vec<(String, Vec<u8>)>);

impl Layout {
    /// Adds a blob; answers with its descriptor.
    fn blob(&mut self, kind: &str, content: &[u8]) -> Value {
        let digest = hex::encode(Sha256::digest(content));
        let name = format!("blobs/sha256/{digest}");
        if self.0.iter().all(|(known, _)| *known != name) {
            self.0.push((name, content.to_vec()));
        }
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": content.len() })
    }

    fn index(&mut self, entries: &[Value]) -> Value {
        self.blob(INDEX, json!({ "manifests": entries }).to_string().as_bytes())
    }

    /// An image with one layer, which is stored as `stored`.
    fn image(&mut self, architecture: &str, layer: &[u8], stored: &[u8]) -> Value {
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(layer)));
        let config =
            json!({ "os": "linux", "architecture": architecture, "rootfs": { "diff_ids": [diff_id] } });
        let config = self.blob("config", config.to_string().as_bytes());
        let layer = self.blob("layer", stored);
        self.blob(MANIFEST, json!({ "config": config, "layers": [layer] }).to_string().as_bytes())
    }

    fn check(mut self, entries: &[Value], stop: &Stop) -> Result<Vec<u8>, RunError> {
        self.0.push(("index.json".to_owned(), json!({ "manifests": entries }).to_string().into_bytes()));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&pack(&self.0)).unwrap();
        let image = check(file.path(), &Wanted { architecture: "amd64", bytes: 1 << 20, stop })?;
        let mut written = Vec::new();
        write(&image, "name:tag", &mut written).unwrap();
        Ok(written)
    }
}

fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpack(archive: &[u8], name: &str) -> Vec<u8> {
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries.find(|entry| entry.path().unwrap() == Path::new(name)).unwrap();
    let mut content = Vec::new();
    entry.read_to_end(&mut content).unwrap();
    content
}

fn stop() -> Stop {
    let (stop, guard) = Stop::guarded(Duration::from_secs(600), &Context::default());
    guard.disarm();
    stop
}

#[test]
fn indexes_within_indexes_are_read_so_often_and_no_more() {
    let mut layout = Layout::default();
    let mut entry = layout.index(&[]);
    for level in 0..3 {
        // Each differs from the others, and leads to the one below it many times.
        let mut entries = vec![entry; 40];
        entries.push(json!({ "digest": level.to_string(), "platform": { "os": "unknown" } }));
        entry = layout.index(&entries);
    }
    let error = layout.check(&[entry], &stop()).unwrap_err();
    assert!(error.message.contains("128 indexes"), "{error}");

    let mut layout = Layout::default();
    let one = layout.image("s390x", b"layer", b"layer");
    let error = layout.check(&vec![one; 1000], &stop()).unwrap_err();
    assert!(error.message.contains("128 indexes"), "{error}");
}

#[test]
fn a_search_ends_when_it_has_to() {
    let mut layout = Layout::default();
    let image = layout.image("amd64", b"layer", b"layer");
    let (ended, guard) = Stop::guarded(Duration::from_secs(600), &Context::default());
    drop(guard);
    assert_eq!(layout.check(&[image], &ended).unwrap_err().code, RunCode::Cancelled);
}

#[test]
fn the_one_image_for_this_machine_is_found() {
    let mut layout = Layout::default();
    let (other, ours) = (layout.image("s390x", b"a", b"a"), layout.image("amd64", b"b", b"b"));
    let nested = layout.index(&[other, ours.clone()]);
    let unknown = json!({ "digest": "sha256:none", "platform": { "os": "unknown" } });
    let written = layout.check(&[unknown, nested], &stop()).unwrap();
    assert_eq!(unpack(&written, "0.tar"), b"b");

    let mut layout = Layout::default();
    let two = [layout.image("amd64", b"a", b"a"), layout.image("amd64", b"b", b"b")];
    // What stands behind the second is not looked at any more.
    let absent = json!({ "mediaType": MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)) });
    let [one, other] = two;
    let error = layout.check(&[one, other, absent], &stop()).unwrap_err();
    assert!(error.message.contains("several images"), "{error}");

    let mut layout = Layout::default();
    let other = layout.image("s390x", b"a", b"a");
    let error = layout.check(&[other], &stop()).unwrap_err();
    assert_eq!(error.code, RunCode::ImageWithoutPlatform);
}

#[test]
fn a_layer_goes_on_as_every_engine_reads_it() {
    let content = b"layer ".repeat(1000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&content).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(content.as_slice(), 0).unwrap();
    for (stored, written) in [(&gzip, &gzip), (&zstd, &content), (&content, &content)] {
        let mut layout = Layout::default();
        let image = layout.image("amd64", &content, stored);
        assert_eq!(unpack(&layout.check(&[image], &stop()).unwrap(), "0.tar"), *written);
    }
    let bomb = zstd::encode_all(vec![0; 2 << 20].as_slice(), 0).unwrap();
    let mut layout = Layout::default();
    let image = layout.image("amd64", &vec![0; 2 << 20], &bomb);
    assert!(layout.check(&[image], &stop()).unwrap_err().message.contains("unpacks to more"));
}
