//! A scripted HTTP server on loopback, and shortcuts.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod dag;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use artifact::{BlobStore, FetchError, FetchPolicy, Fetcher, LocalFile, Reference};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// What the server does with one request.
pub(crate) enum Reply {
    /// Writes these bytes and closes.
    Close(Vec<u8>),
    /// Writes these bytes and then nothing more, without closing.
    Hang(Vec<u8>),
    /// Writes these bytes, then zeros without end.
    Endless(Vec<u8>),
}

/// A server that answers one request per connection by a function of the request's number and text.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move { serve_one(stream, &seen, &*answer).await });
            }
        });
        Self { addr, requests }
    }

    /// Serves the same bytes for every request.
    pub(crate) async fn serving(body: &'static [u8]) -> Self {
        Self::start(move |_, _| Reply::Close(ok("", body))).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub(crate) fn reference(&self, path: &str) -> Reference {
        self.url(path).parse().unwrap()
    }

    /// The requests so far: request line and headers, in lower case.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads one request from `stream` and answers it.
pub(crate) async fn serve_one<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    seen: &Mutex<Vec<String>>,
    answer: &(impl Fn(usize, &str) -> Reply + ?Sized),
) {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
            Ok(_) | Err(_) => return,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.to_ascii_lowercase());
        seen.len() - 1
    };
    let reply = answer(number, &request);
    let (Reply::Close(bytes) | Reply::Hang(bytes) | Reply::Endless(bytes)) = &reply;
    if stream.write_all(bytes).await.is_err() {
        return;
    }
    match reply {
        Reply::Close(_) => drop(stream.shutdown().await),
        Reply::Hang(_) => std::future::pending().await,
        Reply::Endless(_) => while stream.write_all(&[0; 65536]).await.is_ok() {},
    }
}

/// A 200 with a length, and further header lines, each ending in CR LF.
pub(crate) fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    status("200 OK", &format!("{headers}content-length: {}\r\n", body.len()), body)
}

pub(crate) fn status(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {line}\r\nconnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

pub(crate) fn redirect(to: &str) -> Reply {
    Reply::Close(status("302 Found", &format!("location: {to}\r\ncontent-length: 0\r\n"), b""))
}

/// A policy for loopback servers, quick to give up.
pub(crate) fn policy() -> FetchPolicy {
    FetchPolicy {
        allow_private_addresses: true,
        timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(30),
        max_tries: 3,
        retry_pause: Duration::from_millis(1),
        max_bytes: 1 << 20,
        ..FetchPolicy::default()
    }
}

pub(crate) fn fetcher(dir: &Path, policy: FetchPolicy) -> Fetcher {
    Fetcher::new(policy, BlobStore::open(dir.join("blobs")).unwrap()).unwrap()
}

/// Fetches without pin and origin.
pub(crate) async fn get(fetcher: &Fetcher, reference: &Reference) -> Result<LocalFile, FetchError> {
    fetcher.fetch_file(reference, None, None, |_, _| {}).await
}

/// The store holds nothing, not even something unfinished.
pub(crate) async fn assert_empty(fetcher: &Fetcher, dir: &Path) {
    assert_eq!(fetcher.store().usage().await.unwrap().blobs, 0);
    assert_eq!(std::fs::read_dir(dir.join("blobs/tmp")).unwrap().count(), 0);
}
