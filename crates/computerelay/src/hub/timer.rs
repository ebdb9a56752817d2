//! Letting time act on tasks when it is due, by one timer over the store's index of due times.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use store::StoreError;
use taskmarket::{Timestamp, next_due};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use super::Hub;

/// Tasks that are taken up at once.
const BATCH: usize = 256;
/// Of those, tasks worked on at the same time, so that their commits share the store's writes.
const CONCURRENT: usize = 32;
/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the hub stops.
pub(super) async fn run(hub: &Hub) {
    let mut changes = hub.market.subscribe();
    loop {
        let due = match catch_up(hub).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "cannot see what is due");
                Some(hub.market.now().plus(RETRY.as_secs()))
            }
        };
        let mut next = due;
        let mut at = wake_at(hub, next);
        loop {
            tokio::select! {
                () = hub.stop.cancelled() => return,
                () = sleep_until(at) => break,
                change = changes.recv() => match change {
                    Ok(change) => {
                        let earlier = next_due(&change.record).filter(|due| next.is_none_or(|next| *due < next));
                        if let Some(due) = earlier {
                            next = Some(due);
                            at = wake_at(hub, next);
                        }
                    }
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }
}

/// When to look next: at the due time, and in any case after the safety tick.
fn wake_at(hub: &Hub, due: Option<Timestamp>) -> Instant {
    let tick = hub.config.safety_tick;
    let wait = due.map_or(tick, |due| Duration::from_secs(due.since(hub.market.now())).min(tick));
    Instant::now() + wait
}

/// Lets time act on all that is due, and says when it acts next.
async fn catch_up(hub: &Hub) -> Result<Option<Timestamp>, StoreError> {
    let store = hub.market.store();
    loop {
        let due = store.due(hub.market.now(), BATCH).await?;
        if due.is_empty() {
            return store.next_due().await;
        }
        let failed = stream::iter(due)
            .map(|id| async move {
                hub.market.elapse(id).await.inspect_err(|error| {
                    tracing::warn!(task_id = %id, %error, "time could not act");
                })
            })
            .buffer_unordered(CONCURRENT)
            .filter(|result| std::future::ready(result.is_err()))
            .count()
            .await;
        if failed > 0 || hub.stop.is_cancelled() {
            return Ok(Some(hub.market.now().plus(RETRY.as_secs())));
        }
    }
}
