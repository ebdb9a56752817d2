//! An orderly end: signals become one cancellation token, and draining has a deadline.

use std::future::Future;
use std::io::{self, Read};
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The exit status of a process that a second signal ends: what shells report for an interrupt.
const INTERRUPTED: i32 = 130;

/// The flag of a program that runs as another's child, to flatten into its own.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ShutdownArgs {
    /// Shut down when standard input ends: the parent holds a pipe, so that this process never outlives it.
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// Listens for the wish to end. It keeps listening as long as the runtime lives.
#[derive(Debug, Clone)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Starts listening for SIGTERM and SIGINT, and for the end of standard input where `args` asks for it.
    ///
    /// The first of them cancels the token; a second signal ends the process at once with status 130. Needs a
    /// tokio runtime.
    pub fn install(args: ShutdownArgs) -> io::Result<Self> {
        let token = CancellationToken::new();
        let mut signals = Signals::listen()?;
        let stdin_ended = args.exit_with_stdin.then(watch_stdin).transpose()?;
        let cancel = token.clone();
        tokio::spawn(async move {
            let reason = tokio::select! {
                name = signals.next() => name,
                () = ended(stdin_ended) => "end of standard input",
            };
            // First what was asked for: saying so could fail, where nobody reads the log any more.
            cancel.cancel();
            tracing::info!(reason, "shutting down");
            let name = signals.next().await;
            tracing::warn!(reason = name, "ending at once");
            std::process::exit(INTERRUPTED);
        });
        Ok(Self { token })
    }

    /// The token that is cancelled when the process is to end.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

/// Waits for `work` to end, at most `grace`. `None` says that it did not; it is dropped then, and a warning that
/// names `what` is logged.
pub async fn drain<T>(what: &str, grace: Duration, work: impl Future<Output = T>) -> Option<T> {
    match tokio::time::timeout(grace, work).await {
        Ok(output) => Some(output),
        Err(_) => {
            tracing::warn!(what, grace_ms = grace.as_millis(), "not drained in time, dropped");
            None
        }
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "interrupt",
            // Without a way to hear of interrupts there is nothing to report.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Reads standard input to its end on a thread of its own: a blocked read on the runtime's pool would hold up the
/// runtime's end, while this thread ends with the process.
fn watch_stdin() -> io::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = [0; 1024];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        drop(sender);
    })?;
    Ok(receiver)
}

async fn ended(stdin: Option<oneshot::Receiver<()>>) {
    match stdin {
        // The sender says that it ended by going away.
        Some(receiver) => drop(receiver.await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_has_a_deadline() {
        assert_eq!(drain("ready", Duration::from_secs(1), async { 7 }).await, Some(7));
        assert_eq!(drain("stuck", Duration::from_secs(1), std::future::pending::<()>()).await, None);
    }
}
