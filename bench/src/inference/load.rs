//! Clients: each has one connection, and asks again as soon as it has its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use memchr::memchr_iter;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::chains::{API_KEY, trusting};
use super::child::{self, Target};
use super::upstream::MODEL;

/// The longest that a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name in the certificates.
pub(super) const NAME: &str = "localhost";
/// Significant digits of what is measured.
const DIGITS: u8 = 3;

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Shape {
    /// A short answer in one piece.
    Whole,
    /// A stream of tokens.
    Stream,
    /// 8 MiB there, and the same back.
    Echo,
}

impl Shape {
    /// The bytes of an echo.
    pub(super) const ECHO_BYTES: usize = 8 << 20;

    fn body(self) -> Bytes {
        let text = match self {
            Self::Whole | Self::Stream => "Tell me in a few sentences what a compute market is. ".repeat(8),
            Self::Echo => "0123456789abcdef".repeat(Self::ECHO_BYTES / 16),
        };
        let stream = if self == Self::Stream { ",\"stream\":true" } else { "" };
        let turn = format!("{{\"role\":\"user\",\"content\":\"{text}\"}}");
        format!("{{\"model\":\"{MODEL}\"{stream},\"messages\":[{turn}]}}").into()
    }
}

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(super) target: Target,
    /// What to ask for.
    #[arg(long)]
    pub(super) shape: Shape,
    /// How many clients.
    #[arg(long)]
    pub(super) clients: usize,
    /// For how long they go on asking.
    #[arg(long)]
    pub(super) millis: u64,
}

/// Quantiles, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Quantiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl From<&Histogram<u64>> for Quantiles {
    fn from(times: &Histogram<u64>) -> Self {
        let of = |share| times.value_at_quantile(share) as f64;
        Self { p50: of(0.5), p99: of(0.99) }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Requests that were answered as they should be.
    pub(super) served: u64,
    /// Others.
    pub(super) failed: u64,
    /// Events of streams, the last ones among them.
    pub(super) tokens: u64,
    /// From the first request to the last answer's end.
    pub(super) secs: f64,
    /// From a request to its answer's end.
    pub(super) whole: Quantiles,
    /// From a request to the first byte of its answer's body.
    pub(super) first: Quantiles,
    /// Between the pieces of an answer.
    pub(super) gap: Quantiles,
}

/// What one client saw.
struct Tally {
    served: u64,
    failed: u64,
    tokens: u64,
    whole: Histogram<u64>,
    first: Histogram<u64>,
    gap: Histogram<u64>,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        let empty = || Histogram::new(DIGITS);
        Ok(Self { served: 0, failed: 0, tokens: 0, whole: empty()?, first: empty()?, gap: empty()? })
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.served += other.served;
        self.failed += other.failed;
        self.tokens += other.tokens;
        self.whole.add(&other.whole)?;
        self.first.add(&other.first)?;
        Ok(self.gap.add(&other.gap)?)
    }
}

impl Load {
    /// Connects, says so, waits for the word, asks, and says what came of it.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let tls = self.target.certificate.as_deref().map(trusting).transpose()?;
        let mut clients = Vec::with_capacity(self.clients);
        for _ in 0..self.clients {
            clients.push(connect(&self.target, tls.clone()).await.context("a client cannot connect")?);
        }
        child::say(&"ready")?;
        child::told().await?;
        let begun = Instant::now();
        let until = begun + Duration::from_millis(self.millis);
        let body = self.shape.body();
        let mut running = JoinSet::new();
        for client in clients {
            running.spawn(ask(client, self.shape, body.clone(), until));
        }
        let mut sum = Tally::new()?;
        while let Some(tally) = running.join_next().await {
            sum.add(&tally??)?;
        }
        child::say(&Outcome {
            served: sum.served,
            failed: sum.failed,
            tokens: sum.tokens,
            secs: begun.elapsed().as_secs_f64(),
            whole: (&sum.whole).into(),
            first: (&sum.first).into(),
            gap: (&sum.gap).into(),
        })
    }
}

type Client = SendRequest<Full<Bytes>>;

async fn connect(target: &Target, tls: Option<Arc<ClientConfig>>) -> anyhow::Result<Client> {
    let socket = TcpStream::connect(target.address).await?;
    socket.set_nodelay(true)?;
    match tls {
        None => drive(handshake(TokioIo::new(socket)).await?),
        Some(tls) => {
            let stream = TlsConnector::from(tls).connect(ServerName::try_from(NAME)?, socket).await?;
            drive(handshake(TokioIo::new(stream)).await?)
        }
    }
}

fn drive<D>((client, connection): (Client, D)) -> anyhow::Result<Client>
where
    D: Future<Output = hyper::Result<()>> + Send + 'static,
{
    // It ends with the client, who notices what goes wrong.
    tokio::spawn(connection);
    Ok(client)
}

/// Asks until the time is over, or the connection.
async fn ask(mut client: Client, shape: Shape, body: Bytes, until: Instant) -> anyhow::Result<Tally> {
    let mut tally = Tally::new()?;
    while Instant::now() < until {
        match timeout(PATIENCE, once(&mut client, shape, &body, &mut tally)).await {
            Ok(Ok(())) => tally.served += 1,
            Ok(Err(error)) => {
                if tally.failed == 0 {
                    report(&error);
                }
                tally.failed += 1;
                if client.ready().await.is_err() {
                    break;
                }
            }
            Err(_) => {
                tally.failed += 1;
                break;
            }
        }
    }
    Ok(tally)
}

/// Says what went wrong, where the operator sees it.
#[expect(clippy::print_stderr, reason = "a child process has no other way to tell people")]
fn report(error: &anyhow::Error) {
    eprintln!("a request failed: {error:#}");
}

async fn once(client: &mut Client, shape: Shape, body: &Bytes, tally: &mut Tally) -> anyhow::Result<()> {
    let request = Request::post("/v1/chat/completions")
        .header(HOST, NAME)
        .header(AUTHORIZATION, format!("Bearer {API_KEY}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body.clone()))?;
    let begun = Instant::now();
    let mut last = begun;
    client.ready().await?;
    let response = client.send_request(request).await?;
    let status = response.status();
    let mut answer = response.into_body();
    let (mut bytes, mut tokens) = (0, 0);
    while let Some(frame) = answer.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        let now = Instant::now();
        let times = if bytes == 0 { &mut tally.first } else { &mut tally.gap };
        times.record(micros(now - last))?;
        last = now;
        bytes += piece.len();
        if shape == Shape::Stream {
            // Each event ends with two newlines.
            tokens += memchr_iter(b'\n', &piece).count() as u64;
        }
    }
    ensure!(status == StatusCode::OK, "it was answered {status}");
    let is_whole = match shape {
        Shape::Whole => bytes > 0,
        Shape::Stream => tokens > 2,
        Shape::Echo => bytes == body.len(),
    };
    ensure!(is_whole, "{bytes} bytes of {status} are not the answer");
    tally.tokens += tokens / 2;
    tally.whole.record(micros(begun.elapsed()))?;
    Ok(())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
