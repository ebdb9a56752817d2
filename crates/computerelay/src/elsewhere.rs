//! What other relays of the same store commit: whoever follows tasks here is told of it as of what is committed here.
//!
//! The store says when there is something new (PostgreSQL by a notification of each commit). It is read only while other relays live; one
//! that begins is heeded when this relay next looks for others, and until then by those who look into the store by themselves.

use std::sync::Arc;
use std::time::Duration;

use store::{EventFilter, StoreError};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::market::Market;

/// Events that are read at once.
const PAGE: usize = 256;
/// How long the store is not looked into while it says nothing.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Works until `stopping` is cancelled.
pub(crate) async fn follow(market: Arc<Market>, stopping: CancellationToken) {
    let following = async {
        let mut others = market.others();
        let mut since = None;
        loop {
            // What is there at the start is read by whoever follows from then on.
            if since.is_none() {
                since = market.store().last_seq().await.ok();
            }
            if others.wait_for(|are_there| *are_there).await.is_err() {
                return;
            }
            if let Err(error) = read(&market, since).await {
                tracing::warn!(%error, "what other relays do cannot be read");
                sleep(RETRY).await;
            }
        }
    };
    stopping.run_until_cancelled(following).await;
}

/// Tells of what is committed after the last event that was told here, and after `since`, until no other relay lives: before that no other
/// relay lived.
async fn read(market: &Market, since: Option<u64>) -> Result<(), StoreError> {
    let (store, others) = (market.store(), market.others());
    let mut after = match since {
        Some(since) => since.max(market.last_told()),
        None => store.last_seq().await?,
    };
    while *others.borrow() {
        if !store.wait_for_events(after, LOOK_EVERY).await? {
            continue;
        }
        for event in store.events_after(after, EventFilter::default(), PAGE).await? {
            after = event.seq;
            if let Some(task) = store.task(event.task_id).await? {
                market.tell_found(event, task);
            }
        }
    }
    Ok(())
}
