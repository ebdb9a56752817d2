//! The engine inside this program: one Llama-family model, served by OpenAI's API on loopback.
//!
//! It is a process of its own, which the node starts, watches and ends like any other engine that it manages
//! (`managed`), with [`ARGUMENT`] before the flags of [`Args`]: a model is a stranger's file that libraries read, and
//! what it breaks, it breaks here. candle computes (`model`), minijinja writes conversations as the model was trained
//! for them (`template`), and what is here gives each request a slot (`serve`), writes its text on (`generate`) and
//! speaks OpenAI's API (`request`, `answer`).

mod answer;
mod flag;
mod generate;
mod model;
mod refusal;
mod request;
mod serve;
mod template;
mod tokenizer;

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use daemon::{ListenError, LogArgs, Shutdown, ShutdownArgs};

pub use self::flag::ModelSpec;

use self::model::Model;

/// The first argument of a program that is to be this engine.
pub const ARGUMENT: &str = "__engine";

/// How `/v1/models` names whoever owns the model, by which the node knows this engine.
pub(super) const OWNER: &str = "zorai-embedded";

/// How long answers may go on after the wish to end.
const GRACE: Duration = Duration::from_secs(1);

/// The flags of the engine.
#[derive(Debug, Parser)]
#[command(name = "compute-node __engine", version)]
struct Args {
    /// The model: a GGUF file, or a folder with safetensors.
    #[arg(long)]
    model: PathBuf,

    /// Its id in requests.
    #[arg(long)]
    name: String,

    /// Where to listen, on loopback.
    #[arg(long)]
    port: u16,

    /// Requests at once.
    #[arg(long, default_value_t = 1)]
    slots: u32,

    #[command(flatten)]
    log: LogArgs,

    #[command(flatten)]
    shutdown: ShutdownArgs,
}

/// Why the engine does not serve.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The flags are not understood.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// Nothing can be logged.
    #[error("cannot log: {0}")]
    Log(String),
    /// The model cannot be served.
    #[error("{}: {reason}", path.display())]
    Model {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The port cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system does not let it serve.
    #[error("cannot serve: {0}")]
    Serve(#[from] io::Error),
}

/// Loads the model and serves it until the process is told to end. `arguments` are those of the program after [`ARGUMENT`].
///
/// # Errors
/// [`EmbeddedError`].
pub async fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), EmbeddedError> {
    let args = Args::try_parse_from(std::iter::once(OsString::from("engine")).chain(arguments))?;
    daemon::init_logging(&args.log).map_err(|error| EmbeddedError::Log(error.to_string()))?;
    let shutdown = Shutdown::install(args.shutdown)?.token();
    let path = args.model.clone();
    let loading = tokio::task::spawn_blocking(move || Model::load(&path));
    let loaded = tokio::select! {
        loaded = loading => loaded.unwrap_or_else(|error| Err(error.to_string())),
        () = shutdown.cancelled() => return Ok(()),
    };
    let model = loaded.map_err(|reason| EmbeddedError::Model { path: args.model, reason })?;
    tracing::info!(context = model.context, quantization = model.quantization, "the model is loaded");
    let listener = daemon::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port))).await?;
    let router = serve::router(model, args.name, args.slots);
    let stop = shutdown.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        ended = &mut server => return Ok(ended.map_err(io::Error::other)??),
        () = shutdown.cancelled() => {}
    }
    if daemon::drain("answers", GRACE, &mut server).await.is_none() {
        server.abort();
    }
    Ok(())
}
