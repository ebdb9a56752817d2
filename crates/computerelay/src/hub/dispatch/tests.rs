use store::{Sqlite, Store};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::artifacts::{ArtifactLocation, Artifacts};
use crate::auth::AttemptTokens;
use crate::hub::HubConfig;
use crate::market::Market;
use crate::testing::{eventually, publish_untold, task};

/// A hub that runs, over a store of its own.
async fn hub(dir: &TempDir, max_waiting: usize) -> Arc<Hub> {
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(dir.path().join("store")).await.unwrap());
    let location = ArtifactLocation::from(dir.path().join("blobs"));
    let artifacts = Artifacts::open(&location, Arc::clone(&store), None, 1).await.unwrap();
    let market = Market::new(store, artifacts, AttemptTokens::new([0; 32]), None);
    let domains = market.domains().to_vec();
    let safety_tick = Duration::from_millis(50);
    let config = HubConfig { safety_tick, max_waiting, ..HubConfig::new("relay", Vec::new(), domains) };
    let hub = Hub::new(market, config);
    let never = CancellationToken::new();
    tokio::spawn(Arc::clone(&hub).run(never.clone(), never));
    eventually("the hub is open", async || hub.open.load(Ordering::Acquire)).await;
    hub
}

#[tokio::test]
async fn a_durable_task_of_which_nobody_told_is_found() {
    let dir = TempDir::new().unwrap();
    let hub = hub(&dir, 10).await;
    publish_untold(&hub.market, &task(&hub.market)).await;
    eventually("it waits for a host", async || hub.totals().waiting == 1).await;
}

#[tokio::test]
async fn of_more_than_there_is_room_for_the_oldest_wait_and_the_others_are_found_once_there_is() {
    // Without a free host the store is searched until more than half of the room is taken.
    const ROOM: usize = 2;
    let dir = TempDir::new().unwrap();
    let hub = hub(&dir, ROOM).await;
    let mut tasks = Vec::new();
    for _ in 0..2 * ROOM {
        let task = task(&hub.market);
        publish_untold(&hub.market, &task).await;
        tasks.push(task.message.id(&taskmarket::Domain::UNSETTLED));
    }
    eventually("there is no room", async || hub.totals().waiting == ROOM as u64).await;
    for done in 1..=ROOM {
        // Any of them leaves, and another takes its place.
        let known = hub.floor().known();
        let leaves = *tasks.iter().find(|id| known.contains(id)).unwrap();
        tasks.retain(|id| *id != leaves);
        let record = hub.market.task(leaves).await.unwrap().unwrap().record;
        let mut gone = record.clone();
        taskmarket::apply(&mut gone, hub.market.now(), &taskmarket::Event::Expired);
        let event = taskmarket::Event::Expired;
        let recorded = taskmarket::Recorded { version: gone.version, at: hub.market.now(), event };
        hub.market.store().commit(record.version, &gone, vec![recorded], None).await.unwrap();
        hub.look_again(leaves).await;
        eventually("another waits", async || {
            let floor = hub.floor();
            floor.waiting.len() == ROOM && !floor.known().contains(&leaves)
        })
        .await;
        assert_eq!(tasks.len(), 2 * ROOM - done);
    }
}
