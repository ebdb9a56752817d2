//! A registry of images in this process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::images::{digest, sha256};

/// What it has, by digests, and how often it was asked.
#[derive(Default)]
struct Stock {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    asked: AtomicUsize,
}

/// A registry on loopback, until this is dropped.
pub(crate) struct Registry {
    addr: SocketAddr,
    stock: Arc<Stock>,
    _serving: AbortOnDropHandle<()>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, stock) = (listener.local_addr().unwrap(), Arc::<Stock>::default());
        let router =
            Router::new().route("/v2/some/image/{kind}/{digest}", get(fetch)).with_state(Arc::clone(&stock));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, stock, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Adds an image of one layer, compressed with zstd; answers with its digest in hex.
    pub(crate) fn add(&self, config: &Value, layer: &[u8]) -> String {
        let layer = zstd::encode_all(layer, 0).unwrap();
        let config = config.to_string().into_bytes();
        let part = |kind: &str, content: &[u8]| json!({ "mediaType": kind, "digest": sha256(content), "size": content.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("application/vnd.oci.image.config.v1+json", &config),
            "layers": [part("application/vnd.oci.image.layer.v1.tar+zstd", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let name = digest(&manifest);
        let mut blobs = self.stock.blobs.lock().unwrap();
        for content in [manifest, config, layer] {
            blobs.insert(sha256(&content), content);
        }
        name
    }

    /// The image's reference.
    pub(crate) fn reference(&self, digest: &str) -> artifact::Reference {
        format!("oci://{}/some/image@sha256:{digest}", self.addr).parse().unwrap()
    }

    pub(crate) fn asked(&self) -> usize {
        self.stock.asked.load(Ordering::Relaxed)
    }
}

async fn fetch(
    State(stock): State<Arc<Stock>>,
    Path((_, digest)): Path<(String, String)>,
) -> Result<Vec<u8>, StatusCode> {
    stock.asked.fetch_add(1, Ordering::Relaxed);
    stock.blobs.lock().unwrap().get(&digest).cloned().ok_or(StatusCode::NOT_FOUND)
}
