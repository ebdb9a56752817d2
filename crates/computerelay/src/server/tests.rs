use axum::routing::get;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The deadline that a test waits for.
const SHORT: Duration = Duration::from_millis(300);

/// Deadlines that nothing here reaches.
fn patient() -> Deadlines {
    let look = Duration::from_millis(20);
    Deadlines { tls: PATIENCE, head: PATIENCE, idle: PATIENCE, read: PATIENCE, look, farewell: SHORT }
}

/// A server of `/short`, and of `/long`, an answer of these pieces.
struct Served {
    addr: SocketAddr,
    /// Cancelled once the long answer is given up.
    given_up: CancellationToken,
    server: Server,
}

impl Served {
    async fn start<S>(deadlines: Deadlines, pieces: impl Fn() -> S + Clone + Send + Sync + 'static) -> Self
    where
        S: Stream<Item = Bytes> + Send + 'static,
    {
        let given_up = CancellationToken::new();
        let token = given_up.clone();
        let long = move || {
            let guard = token.clone().drop_guard();
            let pieces = pieces().map(move |piece| {
                let _held = &guard;
                Ok::<_, Infallible>(piece)
            });
            async move { Body::from_stream(pieces) }
        };
        let server = Server {
            router: Router::new().route("/short", get(async || "short")).route("/long", get(long)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            dropping: CancellationToken::new(),
            peers: Places::new(0),
            deadlines,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        server.tasks.spawn(server.clone().listen(listener, None, 100));
        Self { addr, given_up, server }
    }

    /// Connects, and asks for a path if there is one.
    async fn ask(&self, path: Option<&str>) -> TcpStream {
        let mut socket = TcpStream::connect(self.addr).await.unwrap();
        if let Some(path) = path {
            let head = format!("GET {path} HTTP/1.1\r\nhost: relay\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
        }
        socket
    }

    async fn stop(self) {
        self.server.stopping.cancel();
        self.server.dropping.cancel();
        self.server.tasks.close();
        timeout(PATIENCE, self.server.tasks.wait()).await.unwrap();
    }
}

/// Reads until the server closes the connection, and answers what came and how long it took.
async fn until_closed(mut socket: TcpStream) -> (Vec<u8>, Duration) {
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    // A reset is an end, too.
    let _ = timeout(PATIENCE, socket.read_to_end(&mut bytes)).await.expect("the server closes it");
    (bytes, begun.elapsed())
}

#[tokio::test]
async fn who_says_nothing_or_nothing_more_is_let_go_and_a_quiet_answer_goes_on() {
    let deadlines = Deadlines { head: SHORT, idle: SHORT, ..patient() };
    let first = || stream::iter([Bytes::from_static(b"first")]).chain(stream::pending());
    let served = Served::start(deadlines, first).await;
    let mut quiet = served.ask(Some("/long")).await;
    let (silent, idle) = (served.ask(None).await, served.ask(Some("/short")).await);
    let (silent, idle) = tokio::join!(until_closed(silent), until_closed(idle));
    assert!(silent.0.is_empty() && silent.1 >= SHORT / 2, "{silent:?}");
    assert!(idle.0.ends_with(b"short") && idle.1 >= SHORT / 2, "{idle:?}");

    // It was there before the others, and goes on.
    let mut bytes = [0; 1024];
    let read = timeout(PATIENCE, quiet.read(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes[..read].starts_with(b"HTTP/1.1 200"));
    assert!(!served.given_up.is_cancelled());
    served.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up_and_one_that_is_read_goes_on() {
    let piece = || stream::repeat_with(|| Bytes::from(vec![0; 64 * 1024]));
    let served = Served::start(Deadlines { read: SHORT, ..patient() }, piece).await;
    let mut read = served.ask(Some("/long")).await;
    let mut bytes = vec![0; 64 * 1024];
    let begun = Instant::now();
    while begun.elapsed() < SHORT * 3 {
        assert!(timeout(PATIENCE, read.read(&mut bytes)).await.unwrap().unwrap() > 0);
    }
    assert!(!served.given_up.is_cancelled(), "its reader reads");
    drop(read);
    timeout(PATIENCE, served.given_up.cancelled()).await.unwrap();
    served.stop().await;

    let served = Served::start(Deadlines { read: SHORT, ..patient() }, piece).await;
    let unread = served.ask(Some("/long")).await;
    timeout(PATIENCE, served.given_up.cancelled()).await.expect("nobody reads it");
    drop(unread);
    served.stop().await;
}

#[tokio::test]
async fn an_unread_answer_of_a_shared_connection_ends_alone() {
    let piece = || stream::repeat_with(|| Bytes::from(vec![0; 64 * 1024]));
    let served = Served::start(Deadlines { read: SHORT, ..patient() }, piece).await;
    let io = TokioIo::new(served.ask(None).await);
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut client, connection) = handshake.unwrap();
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let request = http::Request::get(format!("http://{}/long", served.addr));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        answers.push(client.send_request(request).await.unwrap().into_body());
    }
    let (mut read, mut unread) = (answers.remove(0), answers.remove(0));
    let begun = Instant::now();
    let mut since = None;
    // Beyond the time that a connection has to say farewell.
    while since.is_none_or(|since: Instant| since.elapsed() < SHORT * 3) {
        assert!(begun.elapsed() < PATIENCE, "the unread one is not given up");
        timeout(PATIENCE, read.frame()).await.unwrap().unwrap().expect("it is read, and goes on");
        if since.is_none() && served.given_up.is_cancelled() {
            since = Some(Instant::now());
        }
    }
    let broken = async { while unread.frame().await.unwrap().is_ok() {} };
    timeout(PATIENCE, broken).await.expect("it breaks off once it is read on");
    drop((read, unread, client));
    connection.abort();
    served.stop().await;
}

#[test]
fn what_fits_into_the_open_files() {
    let mut config = Config::new(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        std::path::Path::new("store"),
        daemon::Secret::new("k"),
    );
    let mut fitted = |open_files| {
        (config.max_connections, config.max_sessions) = (10_000, 10_000);
        fit(&mut config, open_files);
        (config.max_connections, config.max_sessions)
    };
    assert_eq!(fitted(1 << 20), (10_000, 10_000));
    // A limit that many systems have: all sessions fit, and no connection is left without a file.
    assert_eq!(fitted(20_000), (7_500, 10_000));
    assert_eq!(fitted(1024), (256, 640));
    assert_eq!(fitted(1), (1, 1));
}
