//! What is done now and then, whatever else goes on: use is written down, and what was kept long enough is forgotten.

use std::time::Duration;

use taskmarket::Timestamp;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::api::App;
use crate::keys::{DAY, write_down};

/// How often the use of keys is written down: what a killed relay has not written is lost.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// How often kept answers that are over are forgotten.
const ANSWERS_EVERY: Duration = Duration::from_secs(600);
/// How often old sessions and records of inference are forgotten.
const SESSIONS_EVERY: Duration = Duration::from_secs(DAY);
/// How often unused artifacts are removed.
const ARTIFACTS_EVERY: Duration = Duration::from_secs(60 * 60);
/// How often bytes are looked for that nothing is known of: all artifacts are listed for that.
const STRAYS_EVERY: Duration = Duration::from_secs(DAY);

/// How long things are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Sessions, after they ended.
    pub(crate) sessions: Duration,
    /// Artifacts, after their last use.
    pub(crate) artifacts: Duration,
}

/// Works until `stopping` is cancelled.
pub(crate) async fn run(app: App, keep: Keep, stopping: CancellationToken) {
    tokio::join!(
        look_after_store(&app, keep.sessions, &stopping),
        look_after_artifacts(&app, keep.artifacts, &stopping)
    );
}

async fn look_after_store(app: &App, keep_sessions: Duration, stopping: &CancellationToken) {
    let (mut writing, mut answers, mut sessions) =
        (interval(WRITE_EVERY), interval(ANSWERS_EVERY), interval(SESSIONS_EVERY));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            // Begun, it is finished: uses that were taken to be written are nowhere else.
            _ = writing.tick() => write_down(&app.access.keys).await,
            _ = answers.tick() => forget_answers(app).await,
            _ = sessions.tick() => {
                // There may be many; the end need not wait for them.
                stopping.run_until_cancelled(forget_sessions(app, keep_sessions)).await;
                stopping.run_until_cancelled(forget_receipts(app)).await;
            }
        }
    }
}

/// Beside the rest: with many artifacts it takes a while.
async fn look_after_artifacts(app: &App, keep: Duration, stopping: &CancellationToken) {
    let artifacts = app.market.artifacts();
    let (mut unused, mut strays) = (interval(ARTIFACTS_EVERY), interval(STRAYS_EVERY));
    loop {
        let removed = tokio::select! {
            () = stopping.cancelled() => return,
            _ = unused.tick() => stopping.run_until_cancelled(artifacts.expire(keep)).await,
            _ = strays.tick() => stopping.run_until_cancelled(artifacts.remove_strays()).await,
        };
        match removed {
            None => return,
            Some(Ok(0)) => {}
            Some(Ok(artifacts)) => tracing::info!(artifacts, "artifacts were removed"),
            Some(Err(error)) => tracing::warn!(%error, "artifacts could not be removed"),
        }
    }
}

async fn forget_answers(app: &App) {
    if let Err(error) = app.market.store().prune_idempotency(ago(app, store::ANSWER_KEPT_SECS)).await {
        tracing::warn!(%error, "kept answers could not be forgotten");
    }
}

async fn forget_sessions(app: &App, keep: Duration) {
    match app.market.store().prune_sessions(ago(app, keep.as_secs())).await {
        Ok(0) => {}
        Ok(sessions) => tracing::info!(sessions, "old sessions were forgotten"),
        Err(error) => tracing::warn!(%error, "old sessions could not be forgotten"),
    }
}

async fn forget_receipts(app: &App) {
    let keep = app.gateway.keep_receipts();
    if let Err(error) = app.market.store().prune_receipts(ago(app, keep.as_secs())).await {
        tracing::warn!(%error, "old records of inference could not be forgotten");
    }
}

fn ago(app: &App, secs: u64) -> Timestamp {
    Timestamp::from_unix(app.market.now().unix().saturating_sub(secs))
}
