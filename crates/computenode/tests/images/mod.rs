//! Images for tests, made without a registry: busybox, and archives that are broken in one way each.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where Debian's package busybox-static puts its program, which needs no library.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

const APPLETS: [&str; 26] = [
    "sh", "cat", "chmod", "cp", "dd", "echo", "env", "grep", "head", "id", "ip", "ln", "ls", "mkdir",
    "mkfifo", "mknod", "nc", "printf", "rm", "sleep", "tail", "touch", "true", "wget", "yes", "hostname",
];

/// A file of a tar: its name, its kind, where it leads if it is a link, and its content.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: tar::EntryType,
    pub(crate) link: &'a str,
    pub(crate) mode: u32,
    pub(crate) content: &'a [u8],
}

/// A regular file.
pub(crate) fn file<'a>(name: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry { name, kind: tar::EntryType::Regular, link: "", mode: 0o644, content }
}

/// A tar of `entries`, whatever their names are.
pub(crate) fn pack(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let name = entry.name.as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        builder.append(&header, entry.content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The file system of the image: busybox under its names, once also with the rights of its owner, root.
pub(crate) fn busybox_layer() -> Vec<u8> {
    let program = std::fs::read(BUSYBOX).expect("the package busybox-static is installed");
    let links: Vec<String> = APPLETS.iter().map(|name| format!("bin/{name}")).collect();
    let folder = |name| Entry { kind: tar::EntryType::Directory, mode: 0o755, ..file(name, b"") };
    let mut entries = vec![
        folder("bin/"),
        folder("etc/"),
        Entry { mode: 0o755, ..file("bin/busybox", &program) },
        Entry { mode: 0o4755, ..file("bin/busybox-setuid", &program) },
        file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"),
    ];
    for name in &links {
        entries.push(Entry { kind: tar::EntryType::Symlink, link: "busybox", ..file(name, b"") });
    }
    pack(&entries)
}

/// An image's configuration.
pub(crate) fn config(architecture: &str, layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/true"], "Volumes": { "/data": {} } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// The architecture of this machine, as images name it.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// An archive as `docker save` makes it.
pub(crate) fn docker_archive(config: &Value, layers: &[&[u8]], tag: &str) -> Vec<u8> {
    let config = config.to_string();
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{ "Config": config_name, "RepoTags": [tag], "Layers": names }]).to_string();
    let mut entries = vec![file("manifest.json", manifest.as_bytes()), file(&config_name, config.as_bytes())];
    entries.extend(names.iter().zip(layers).map(|(name, layer)| file(name, layer)));
    pack(&entries)
}

/// An OCI layout with a compressed layer.
pub(crate) fn oci_archive(config: &Value, layer: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(layer).unwrap();
    let layer = gzip.finish().unwrap();
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha256(&layer), "size": layer.len() }],
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(manifest.as_bytes()), "size": manifest.len() }],
    })
    .to_string();
    let name = |content: &[u8]| format!("blobs/sha256/{}", digest(content));
    pack(&[
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", index.as_bytes()),
        file(&name(manifest.as_bytes()), manifest.as_bytes()),
        file(&name(config.as_bytes()), config.as_bytes()),
        file(&name(&layer), &layer),
    ])
}

/// The SHA-256 in hex.
pub(crate) fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

pub(crate) fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", digest(content))
}

/// Writes `image` into `folder`, and says where.
pub(crate) fn write(folder: &Path, image: &[u8]) -> std::path::PathBuf {
    let path = folder.join(format!("{}.tar", digest(image)));
    // A running job may read it already.
    if !path.exists() {
        std::fs::write(&path, image).unwrap();
    }
    path
}
