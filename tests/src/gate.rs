//! An HTTP server whose answer waits until the test lets it go: a task whose input lies there is in the middle of its run for exactly
//! as long as the test wants, on machines of any speed.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tokio::sync::watch;

/// The gate, closed at first.
#[derive(Debug)]
pub struct Gate {
    /// Where the input is.
    pub url: String,
    open: Arc<watch::Sender<bool>>,
    asked: watch::Receiver<u32>,
    server: tokio::task::JoinHandle<()>,
}

impl Gate {
    /// Serves `content` once opened.
    ///
    /// # Panics
    /// No port can be had.
    pub async fn new(content: &'static [u8]) -> Self {
        let (open, opened) = watch::channel(false);
        let (asking, asked) = watch::channel(0);
        let asking = Arc::new(asking);
        let handler = move || {
            let mut opened = opened.clone();
            asking.send_modify(|count| *count += 1);
            async move {
                let _ = opened.wait_for(|open| *open).await;
                content
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/input", listener.local_addr().expect("a bound address"));
        let router = Router::new().route("/input", get(handler));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { url, open: Arc::new(open), asked, server }
    }

    /// Waits until somebody has asked so many times.
    ///
    /// # Panics
    /// Nobody does.
    pub async fn asked(&mut self, times: u32) {
        let waited =
            tokio::time::timeout(crate::PATIENCE, self.asked.wait_for(|count| *count >= times)).await;
        assert!(waited.is_ok(), "nobody asked for the input {times} times");
    }

    /// Lets everybody through, now and from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}
