//! A TCP proxy that a test can cut: connections are dropped, or left half-open without a word.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Passes them on.
    Up,
    /// Closes every connection, and new ones at once.
    Cut,
    /// Keeps connections open and passes nothing, as a network that lost its way does.
    Silent,
    /// Passes so many bytes of what is sent by each new connection, and closes it then.
    Short(u64),
}

/// A proxy in front of a port.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect.
    pub port: u16,
    line: Arc<watch::Sender<Line>>,
    server: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy to a loopback port, with the line up.
    ///
    /// # Panics
    /// No port can be had.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a bound address").port();
        let line = Arc::new(watch::Sender::new(Line::Up));
        let state = Arc::clone(&line);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, target, state.subscribe()));
            }
        });
        Self { port, line, server }
    }

    /// Sets what happens to bytes from now on.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn carry(mut client: TcpStream, target: u16, mut line: watch::Receiver<Line>) {
    let now = *line.borrow_and_update();
    match now {
        Line::Cut => return,
        Line::Silent => {
            let _ = line.wait_for(|line| *line == Line::Cut).await;
            return;
        }
        Line::Up | Line::Short(_) => {}
    }
    let Ok(mut relay) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = client.set_nodelay(true);
    let _ = relay.set_nodelay(true);
    if let Line::Short(bytes) = now {
        let ((sent, mut answers), (mut answered, mut requests)) = (client.split(), relay.split());
        let mut sent = sent.take(bytes);
        tokio::select! {
            _ = tokio::io::copy(&mut sent, &mut requests) => {}
            _ = tokio::io::copy(&mut answered, &mut answers) => {}
        }
        return;
    }
    let changed = tokio::select! {
        _ = copy_bidirectional(&mut client, &mut relay) => return,
        changed = line.wait_for(|line| *line != Line::Up) => changed.map(|line| *line),
    };
    if changed.is_ok_and(|line| line == Line::Silent) {
        // Both sockets stay open, and nobody reads them.
        let _ = line.wait_for(|line| *line == Line::Cut).await;
    }
}
