//! What the unit tests of several modules need.

use store::KeyId;
use taskmarket::{
    Address, Amount, Bytes32, ContentHash, Domain, Event, Recorded, Runtime, Signed, Task, TaskConfig, TaskId,
};
use wallet::Wallet;

use crate::market::Market;

/// A task that any host fits, open for an hour, unlike any other.
pub(crate) fn task(market: &Market) -> Signed<Task> {
    task_of(market, &Wallet::random())
}

/// Such a task of this requester.
pub(crate) fn task_of(market: &Market, requester: &Wallet) -> Signed<Task> {
    let task = Task {
        requester: requester.address(),
        model_cid: "https://models.example/m.wasm".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://models.example/input".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Wasm,
            params: "{}".into(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 60,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: market.now().plus(3600),
        dispute_window: 0,
        arbiter_window: 0,
        arbiter: Address::ZERO,
        salt: Bytes32(rand::random::<[u8; 32]>().into()),
    };
    requester.sign(&task, &Domain::UNSETTLED).unwrap()
}

/// Makes a task durable and tells nobody, as another relay of the same store does, or a crash.
pub(crate) async fn publish_untold(market: &Market, task: &Signed<Task>) -> TaskId {
    let (domain, at) = (Domain::UNSETTLED, market.now());
    let record = taskmarket::publish(at, &task.clone().verify(&domain).unwrap()).unwrap();
    let event = Event::Published { task: Box::new(task.clone()), domain };
    let (id, first) = (record.id, Recorded { version: record.version, at, event });
    market.store().publish(record, first, KeyId::of_api_key("somebody's")).await.unwrap();
    id
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let patience = std::time::Duration::from_secs(20);
    tokio::time::timeout(patience, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}
