//! Container images from a registry.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use artifact::{Digest, FetchError, FetchPolicy, Fetcher, LocalImage, Platform, Reference};
use common::{Reply, Server, assert_empty, fetcher, ok, policy, redirect, status};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

type Blobs = HashMap<Digest, Vec<u8>>;

fn amd64() -> Platform {
    Platform { os: "linux".into(), architecture: "amd64".into() }
}

fn put(blobs: &mut Blobs, bytes: &[u8]) -> Digest {
    blobs.insert(Digest::of(bytes), bytes.to_vec());
    Digest::of(bytes)
}

fn listed(kind: &str, digest: Digest, size: usize) -> String {
    format!(r#"{{"mediaType":"{kind}","digest":"sha256:{digest}","size":{size}}}"#)
}

/// An image of these layers for Linux on `architecture`; answers with its manifest's digest.
fn image(blobs: &mut Blobs, architecture: &str, layers: &[&[u8]]) -> Digest {
    let ids = vec![r#""sha256:00""#; layers.len()].join(",");
    let config = format!(
        r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
    );
    let layers: Vec<_> = layers.iter().map(|bytes| listed(LAYER, put(blobs, bytes), bytes.len())).collect();
    let config =
        listed("application/vnd.oci.image.config.v1+json", put(blobs, config.as_bytes()), config.len());
    manifest(blobs, &config, &layers.join(","))
}

fn manifest(blobs: &mut Blobs, config: &str, layers: &str) -> Digest {
    let text =
        format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layers}]}}"#);
    put(blobs, text.as_bytes())
}

fn index(blobs: &mut Blobs, variants: &[(&str, Digest)]) -> Digest {
    let one = |(architecture, digest): &(&str, Digest)| {
        let size = blobs.get(digest).map_or(1, Vec::len);
        format!(
            r#"{{"mediaType":"{MANIFEST}","digest":"sha256:{digest}","size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
        )
    };
    let variants: Vec<_> = variants.iter().map(one).collect();
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, variants.join(","));
    put(blobs, text.as_bytes())
}

/// The digest and the kind that a request names.
fn asked(request: &str) -> Option<(Digest, bool)> {
    let path = request.split(' ').nth(1)?;
    let (rest, digest) = path.rsplit_once("/sha256:")?;
    let kind = rest.strip_prefix("/v2/some/image/")?;
    Some((digest.parse().ok()?, kind == "blobs"))
}

async fn registry(blobs: Blobs) -> Server {
    Server::start(move |_, request| match asked(request).and_then(|(digest, _)| blobs.get(&digest)) {
        Some(blob) => Reply::Close(ok("", blob)),
        None => Reply::Close(status("404 Not Found", "", b"")),
    })
    .await
}

fn reference(server: &Server, digest: Digest) -> Reference {
    format!("oci://{}/some/image:tag@sha256:{digest}", server.addr).parse().unwrap()
}

async fn fetch(fetcher: &Fetcher, at: &Reference) -> Result<LocalImage, FetchError> {
    fetcher.fetch_image(at, &amd64(), |_, _| {}).await
}

#[tokio::test]
async fn the_platforms_variant_comes_whole_and_can_be_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::new();
    let amd = image(&mut blobs, "amd64", &[b"base", b"top", b"base"]);
    let arm = image(&mut blobs, "arm64", &[b"arm"]);
    let root = index(&mut blobs, &[("arm64", arm), ("unknown", Digest::of(b"?")), ("amd64", amd)]);
    let server = registry(blobs).await;
    let fetcher = fetcher(dir.path(), policy());
    let seen = Mutex::new(Vec::new());
    let report = |done, total| seen.lock().unwrap().push((done, total));
    let got = fetcher.fetch_image(&reference(&server, root), &amd64(), report).await.unwrap();
    assert_eq!((got.manifest.digest, got.media_type.as_str()), (amd, MANIFEST));
    let layers: Vec<_> = got.layers.iter().map(|layer| std::fs::read(&layer.path).unwrap()).collect();
    assert_eq!(layers, [b"base".as_slice(), b"top", b"base"]);
    assert_eq!(seen.into_inner().unwrap().last(), Some(&(11, Some(11))));
    assert_eq!(server.requests().len(), 5, "index, manifest, configuration, two layers");
    let (theirs, again) = (fetcher.clone(), reference(&server, root));
    let task = tokio::spawn(async move { fetch(&theirs, &again).await });
    assert_eq!(task.await.unwrap().unwrap(), got, "from the store");
    assert_eq!(server.requests().len(), 5);

    let layout = dir.path().join("layout");
    got.write_layout(&layout).unwrap();
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(layout.join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
    assert_eq!(read("index.json")["manifests"][0]["digest"], format!("sha256:{amd}"));
    let archive = read("manifest.json");
    for path in archive[0]["Layers"].as_array().unwrap().iter().chain([&archive[0]["Config"]]) {
        let path = path.as_str().unwrap();
        let bytes = std::fs::read(layout.join(path)).unwrap();
        assert_eq!(path, format!("blobs/sha256/{}", Digest::of(&bytes)));
    }
    let all: Vec<_> = got.files().map(|file| file.path.clone()).collect();
    assert!(fetcher.store().keep(&all).await.unwrap().is_some());
}

#[tokio::test]
async fn images_not_made_for_the_platform_are_named_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::new();
    let arm = image(&mut blobs, "arm64", &[b"arm"]);
    let many = index(&mut blobs, &[("arm64", arm), ("s390x", arm)]);
    let none = index(&mut blobs, &[]);
    let server = registry(blobs).await;
    let fetcher = fetcher(dir.path(), policy());
    for (digest, offered) in [(arm, "linux/arm64"), (many, "linux/arm64, linux/s390x"), (none, "nothing")] {
        let error = fetch(&fetcher, &reference(&server, digest)).await.unwrap_err();
        assert_eq!(error.code(), "image_without_platform");
        assert!(error.to_string().contains(offered) && error.to_string().contains("linux/amd64"), "{error}");
    }
    assert!(!fetcher.store().contains(&Digest::of(b"arm")).await.unwrap(), "no layer was fetched");
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::new();
    let digest = put(&mut blobs, b"{}");
    let layer = listed(LAYER, put(&mut blobs, b"layer"), 5);
    let config =
        |ids: &str| format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":[{ids}]}}}}"#);
    let mut configured = |ids: &str| {
        let text = config(ids);
        listed("application/vnd.oci.image.config.v1+json", put(&mut blobs, text.as_bytes()), text.len())
    };
    let (one, two) = (configured(r#""sha256:00""#), configured(r#""a","b""#));
    let long = listed(LAYER, Digest::of(b"layer"), 6);
    let foreign =
        listed("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest::of(b"layer"), 5);
    let other_hash = layer.replace("sha256:", "sha512:");
    let huge = listed(LAYER, Digest::of(b"huge"), 1 << 30);
    let absent = listed(LAYER, Digest::of(b"absent"), 6);
    let cases = [
        (digest, "bad_image"),
        (put(&mut blobs, b"not json"), "bad_image"),
        (put(&mut blobs, &vec![b' '; 5 << 20]), "too_large"),
        (manifest(&mut blobs, &listed("x", digest, 2), &layer), "bad_image"),
        (manifest(&mut blobs, &two, &layer), "bad_image"),
        (manifest(&mut blobs, &one, &foreign), "bad_image"),
        (manifest(&mut blobs, &one, &other_hash), "bad_image"),
        (manifest(&mut blobs, &one, &huge), "too_large"),
        (manifest(&mut blobs, &one, &absent), "not_found"),
        (manifest(&mut blobs, &one, &long), "bad_image"),
    ];
    let server = registry(blobs).await;
    let fetcher = fetcher(dir.path(), policy());
    for (index, (digest, code)) in cases.into_iter().enumerate() {
        let error = fetch(&fetcher, &reference(&server, digest)).await.unwrap_err();
        assert_eq!(error.code(), code, "case {index}: {error}");
    }
    for (text, code) in [
        (format!("oci://{}/UPPER@sha256:{digest}", server.addr), "bad_reference"),
        (format!("oci://{}/../x@sha256:{digest}", server.addr), "bad_reference"),
        (format!("artifact://{digest}"), "bad_reference"),
    ] {
        assert_eq!(fetch(&fetcher, &text.parse().unwrap()).await.unwrap_err().code(), code, "{text}");
    }
}

#[tokio::test]
async fn every_blob_is_checked() {
    let mut blobs = Blobs::new();
    let root = image(&mut blobs, "amd64", &[b"layer"]);
    for forged in blobs.keys().copied().collect::<Vec<_>>() {
        let dir = tempfile::tempdir().unwrap();
        let mut blobs = blobs.clone();
        let blob = blobs.get_mut(&forged).unwrap();
        *blob.last_mut().unwrap() ^= 1;
        let server = registry(blobs).await;
        let fetcher = fetcher(dir.path(), policy());
        let error = fetch(&fetcher, &reference(&server, root)).await.unwrap_err();
        assert_eq!(error.code(), "hash_mismatch", "{error}");
        assert!(!fetcher.store().contains(&forged).await.unwrap());
    }
}

#[tokio::test]
async fn tokens_are_asked_for_and_go_to_the_registry_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::new();
    let root = image(&mut blobs, "amd64", &[b"one", b"two"]);
    let blobs = Arc::new(blobs);
    let theirs = blobs.clone();
    let storage = Server::start(move |_, request| {
        let digest: Digest = request.split([' ', '/']).nth(2).unwrap().parse().unwrap();
        Reply::Close(ok("", &theirs[&digest]))
    })
    .await;
    let tokens =
        Server::start(|n, _| Reply::Close(ok("", format!(r#"{{"token":"t{n}"}}"#).as_bytes()))).await;
    let (place, issuer) = (storage.url(""), tokens.url("/token?x=1"));
    let server = Server::start(move |n, request| {
        // The first token lasts for three requests only.
        let valid = if n < 6 { "Bearer t0\r\n" } else { "Bearer t1\r\n" };
        if !request.contains(valid) {
            let ask = format!("www-authenticate: Bearer realm=\"{issuer}\",service=\"reg\"\r\n");
            return Reply::Close(status("401 Unauthorized", &ask, b""));
        }
        match asked(request).unwrap() {
            (digest, true) => redirect(&format!("{place}/{digest}")),
            (digest, false) => Reply::Close(ok("", &blobs[&digest])),
        }
    })
    .await;
    let fetcher = fetcher(dir.path(), FetchPolicy { max_parallel: 1, ..policy() });
    let got = fetch(&fetcher, &reference(&server, root)).await.unwrap();
    assert_eq!(got.layers.len(), 2);
    assert!(
        tokens.requests()[0]
            .starts_with("get /token?x=1&service=reg&scope=repository%3asome%2fimage%3apull ")
    );
    assert!(storage.requests().iter().all(|request| !request.contains("authorization")));
}

#[tokio::test]
async fn registries_and_their_token_servers_are_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::new();
    let root = image(&mut blobs, "amd64", &[b"one"]);
    let server = registry(blobs).await;
    let guarded = fetcher(dir.path(), FetchPolicy { allow_private_addresses: false, ..policy() });
    for host in
        [server.addr.to_string(), format!("localhost:{}", server.addr.port()), "169.254.169.254".into()]
    {
        let reference = format!("oci://{host}/some/image@sha256:{root}").parse().unwrap();
        let error = fetch(&guarded, &reference).await.unwrap_err();
        assert_eq!(error.code(), "forbidden_address", "{host}: {error}");
    }
    assert!(server.requests().is_empty());

    let open = Fetcher::new(policy(), guarded.store().clone()).unwrap();
    for (realm, code) in [
        ("http://169.254.169.254/token", "forbidden_address"),
        ("file:///etc/passwd", "not_allowed"),
        ("nowhere", "unauthorized"),
    ] {
        let ask = format!("www-authenticate: Bearer realm=\"{realm}\"\r\n");
        let asking = Server::start(move |_, _| Reply::Close(status("401 Unauthorized", &ask, b""))).await;
        let error = fetch(&open, &reference(&asking, root)).await.unwrap_err();
        assert_eq!(error.code(), code, "{realm}: {error}");
    }
    let inward = Server::start(|_, _| redirect("http://169.254.169.254/")).await;
    assert_eq!(fetch(&open, &reference(&inward, root)).await.unwrap_err().code(), "forbidden_address");
    assert_empty(&open, dir.path()).await;
}
