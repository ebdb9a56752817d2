//! What other relays of the same store commit: whoever follows tasks here is told of it as of what is committed here.
//!
//! The store says when there is something new (PostgreSQL by a notification of each commit). It is read only while other relays live; one
//! that begins is heeded when this relay next looks for others, and until then by those who look into the store by themselves.

use std::collections::HashMap;
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
        // What is there at the start is read by whoever follows from then on.
        let mut after = loop {
            match market.store().last_seq().await {
                Ok(last) => break last,
                Err(error) => {
                    tracing::warn!(%error, "where the store's events end cannot be read");
                    sleep(RETRY).await;
                }
            }
        };
        loop {
            let are_there = *others.borrow_and_update();
            if are_there {
                while let Err(error) = read(&market, &mut after).await {
                    tracing::warn!(%error, "what other relays do cannot be read");
                    sleep(RETRY).await;
                }
            } else {
                after = pass_own(&market, after);
            }
            if others.changed().await.is_err() {
                return;
            }
        }
    };
    stopping.run_until_cancelled(following).await;
}

/// Where to read on, once it is known that no other relay lived: after what was committed here.
fn pass_own(market: &Market, after: u64) -> u64 {
    let after = after.max(market.alone_until());
    market.was_told(after);
    after
}

/// Tells of what others commit after an event until none of them lives, and to the end of what they did.
async fn read(market: &Market, after: &mut u64) -> Result<(), StoreError> {
    let (store, mut others) = (market.store(), market.others());
    loop {
        let are_there = *others.borrow_and_update();
        while read_page(market, after).await? {}
        if !are_there {
            return Ok(());
        }
        let left = async { others.wait_for(|are_there| !are_there).await.map(drop) };
        tokio::select! {
            ended = left => if ended.is_err() { return Ok(()) },
            waited = store.wait_for_events(*after, LOOK_EVERY) => { waited?; }
        }
    }
}

/// Tells of a page of events, and says whether there may be more.
async fn read_page(market: &Market, after: &mut u64) -> Result<bool, StoreError> {
    let store = market.store();
    let page = store.events_after(*after, EventFilter::default(), PAGE).await?;
    let is_full = page.len() == PAGE;
    // As of after the page, so of after each of its events.
    let mut tasks = HashMap::new();
    for event in page {
        let seq = event.seq;
        if !market.was_told(seq) {
            let id = event.task_id;
            let known = match tasks.get(&id).cloned() {
                Some(known) => known,
                None => {
                    let read = store.task(id).await?.map(|task| (Arc::new(task.record), task.node));
                    tasks.entry(id).or_insert(read).clone()
                }
            };
            if let Some((record, node)) = known {
                market.tell_found(event, record, node);
            }
        }
        *after = seq;
    }
    Ok(is_full)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use store::{KeyId, Sqlite, Store};
    use taskmarket::Domain;
    use tempfile::TempDir;
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;
    use crate::artifacts::{ArtifactLocation, Artifacts};
    use crate::auth::AttemptTokens;
    use crate::testing::{publish_untold, task};

    async fn market(dir: &TempDir) -> Arc<Market> {
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path().join("store")).await.unwrap());
        let location = ArtifactLocation::from(dir.path().join("blobs"));
        let artifacts = Artifacts::open(&location, Arc::clone(&store), None, 1).await.unwrap();
        Market::new(store, artifacts, AttemptTokens::new([0; 32]), None)
    }

    /// Publishes a task here.
    async fn publish(market: &Market) {
        let task = task(market).verify(&Domain::UNSETTLED).unwrap();
        market.publish(task, KeyId::of_api_key("somebody's")).await.unwrap();
    }

    #[tokio::test]
    async fn what_another_committed_before_it_was_heard_of_is_told_and_own_events_once() {
        let dir = TempDir::new().unwrap();
        let market = market(&dir).await;
        let mut changes = market.subscribe();
        let mut after = market.store().last_seq().await.unwrap();
        // Nobody else was there up to here.
        publish(&market).await;
        let told = changes.try_recv().unwrap().seq;
        market.heed_others(false, market.last_told());
        after = pass_own(&market, after);
        assert_eq!(after, told);

        // Another begins, and what is committed here follows on what it did.
        let theirs = task(&market);
        publish_untold(&market, &theirs).await;
        publish(&market).await;
        assert!(changes.try_recv().is_ok());
        market.heed_others(true, market.last_told());
        let found = async {
            let change = changes.recv().await.unwrap();
            assert_eq!(change.record.id, theirs.message.id(&Domain::UNSETTLED));
            // What it does last is told though it is gone by then.
            let last = task(&market);
            publish_untold(&market, &last).await;
            market.heed_others(false, market.last_told());
            last.message.id(&Domain::UNSETTLED)
        };
        let (read, last) = tokio::join!(read(&market, &mut after), found);
        read.unwrap();
        let rest: BTreeSet<_> = std::iter::from_fn(|| changes.try_recv().ok()).map(|c| c.record.id).collect();
        assert_eq!(rest, BTreeSet::from([last]), "nothing else, and nothing of its own again");
        assert_eq!(changes.try_recv().unwrap_err(), TryRecvError::Empty);
        assert_eq!(after, market.store().last_seq().await.unwrap());
        assert_eq!(pass_own(&market, after), after, "own events lie before it");
    }
}
