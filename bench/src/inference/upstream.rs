//! An engine that costs next to nothing: it speaks as much of OpenAI's API as a gateway needs, and its answers are ready before it is asked.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tokio::net::TcpListener;
use tokio::time::{Interval, interval};

use super::child;

/// The model that everybody asks for.
pub(super) const MODEL: &str = "bench";
/// Larger requests are sent back as the answer.
const ECHO_BYTES: usize = 64 * 1024;

const MODELS: &[u8] =
    br#"{"object":"list","data":[{"id":"bench","object":"model","created":0,"owned_by":"bench"}]}"#;
const TOKEN: &[u8] =
    b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"bench\",\
\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";
const END: &[u8] = b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"bench\",\
\"choices\":[],\"usage\":{\"prompt_tokens\":32,\"completion_tokens\":200,\"total_tokens\":232}}\n\ndata: [DONE]\n\n";

/// What it answers to a request that wants neither a stream nor its own body back: 400 bytes, as short answers have.
fn completion() -> Bytes {
    let json = |content: &str| {
        format!(
            "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"message\":\
             {{\"role\":\"assistant\",\"content\":\"{content}\"}},\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":32,\"completion_tokens\":48,\"total_tokens\":80}}}}"
        )
    };
    let filling = 400_usize.saturating_sub(json("").len());
    json(&"x".repeat(filling)).into()
}

/// The pace of its streams.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Pace {
    /// Tokens in each stream.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub(super) tokens: u32,
    /// Milliseconds from one token to the next.
    #[arg(long, default_value_t = 5, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) token_ms: u64,
}

/// Serves until nobody holds the other end of its standard input any more.
pub(super) async fn serve(pace: Pace) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    child::say(&listener.local_addr()?)?;
    let whole = completion();
    let serving = async {
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let whole = whole.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(request, pace, whole.clone()));
                // Who breaks a connection off notices that themselves.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    };
    tokio::select! {
        ended = serving => ended,
        () = child::orphaned() => Ok(()),
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>, pace: Pace, whole: Bytes) -> Result<Answer, hyper::Error> {
    let json = |bytes: Bytes| response("application/json", Full::new(bytes));
    if request.method() == Method::GET {
        return Ok(json(Bytes::from_static(MODELS)));
    }
    let body = request.into_body().collect().await?.to_bytes();
    Ok(if body.len() > ECHO_BYTES {
        json(body)
    } else if memmem::find(&body, b"\"stream\":true").is_some() {
        let pace = Tokens { pace: interval(Duration::from_millis(pace.token_ms)), left: pace.tokens + 1 };
        response("text/event-stream", pace)
    } else {
        json(whole)
    })
}

fn response(
    form: &'static str,
    body: impl Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> Answer {
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(form));
    response
}

/// A stream: one token at each beat, the first at once, and its end with the last beat.
struct Tokens {
    pace: Interval,
    left: u32,
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.pace.poll_tick(context));
        self.left -= 1;
        let piece = if self.left == 0 { END } else { TOKEN };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}
