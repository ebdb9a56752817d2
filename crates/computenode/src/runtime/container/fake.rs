//! An engine that is none, for tests: it answers as it is told to.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use bollard::Docker;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

/// A socket, and what was asked there.
pub(super) struct FakeEngine {
    pub(super) docker: Docker,
    /// Methods and paths, without the version.
    pub(super) asked: Arc<Mutex<Vec<String>>>,
    _folder: TempDir,
    _serving: AbortOnDropHandle<()>,
}

impl FakeEngine {
    /// Answers each request, such as `GET /info`, with a status and a body.
    pub(super) async fn start(
        answer: impl Fn(&str) -> (u16, &'static str) + Clone + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let router = Router::new().fallback(move |request: Request| {
            let path = request.uri().path().trim_start_matches('/');
            let plain = path.split_once('/').filter(|(version, _)| version.starts_with("v1."));
            let asked = format!("{} /{}", request.method(), plain.map_or(path, |(_, plain)| plain));
            let (status, body) = answer(&asked);
            let seen = Arc::clone(&seen);
            async move {
                // Who sends much finds the connection closed where nobody reads it.
                let read = axum::body::to_bytes(request.into_body(), usize::MAX).await;
                seen.lock().unwrap().push(asked);
                (read.map_or(StatusCode::BAD_REQUEST, |_| StatusCode::from_u16(status).unwrap()), body)
            }
        });
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let docker =
            Docker::connect_with_unix(socket.to_str().unwrap(), 60, bollard::API_DEFAULT_VERSION).unwrap();
        Self { docker, asked, _folder: folder, _serving: AbortOnDropHandle::new(serving) }
    }
}
