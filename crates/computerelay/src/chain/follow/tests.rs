//! Followers that are driven by hand, on a real chain: what they give to tasks, in which order, and how two on one database get along.

use std::net::SocketAddr;

use serde_json::json;
use store::KeyId;
use taskmarket::{ChainChange, ChainFact, Event, Money, Recorded, Signed, Task, TaskRecord};
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::location::StoreLocation;
use crate::relay::build;

#[path = "../../../tests/settlement/chain.rs"]
#[expect(dead_code, reason = "shared with the tests of the relay as a process")]
mod chain;
#[path = "../../../../store/tests/store/server.rs"]
#[expect(dead_code, reason = "shared with the store's tests")]
mod server;

use chain::{PROVIDER, REQUESTER, World, world};

const CONFIRMATIONS: u64 = 3;

/// A relay's follower, and a folder for the relay's artifacts.
struct Rig {
    follower: Follower,
    _dir: TempDir,
}

impl Rig {
    /// A follower of a relay on a store of its own.
    async fn alone(world: &World) -> Self {
        let dir = TempDir::new().unwrap();
        let store = StoreLocation::Folder(dir.path().join("store"));
        Self::of(world, "alone", store, dir).await
    }

    /// A follower of a relay on a database that others share.
    async fn sharing(world: &World, relay_id: &str, database: &str) -> Self {
        let store = StoreLocation::Postgres(daemon::Secret::new(database));
        Self::of(world, relay_id, store, TempDir::new().unwrap()).await
    }

    async fn of(world: &World, relay_id: &str, store: StoreLocation, dir: TempDir) -> Self {
        let escrow = EscrowConfig {
            domain: world.chain.domain(),
            rpc_urls: vec![world.anvil.url()],
            confirmations: CONFIRMATIONS,
            from_block: 0,
            poll: Duration::from_millis(50),
        };
        let config = Config {
            relay_id: relay_id.to_owned(),
            artifacts: dir.path().join("artifacts").into(),
            escrow: Some(escrow.clone()),
            ..Config::new(SocketAddr::from(([127, 0, 0, 1], 0)), store, daemon::Secret::new("key"))
        };
        let app = build(config).await.unwrap().app;
        let tls = Arc::new(daemon::tls::client_config(None).unwrap());
        let follower = Follower::new(escrow, tls, Arc::clone(&app.market), Arc::clone(&app.hub)).unwrap();
        Self { follower, _dir: dir }
    }

    /// Looks until there is nothing more to read.
    async fn catch_up(&mut self, now: Instant) {
        while !self.follower.round(now).await.unwrap() {}
    }

    fn market(&self) -> &Market {
        &self.follower.market
    }

    async fn publish(&self, signed: &Signed<Task>) -> TaskId {
        let verified = signed.clone().verify(&self.follower.config.domain).unwrap();
        self.market().publish(verified, KeyId::of_api_key("somebody's")).await.unwrap().0.record.id
    }

    /// Makes a task durable and nothing else, as a relay of the same store that ends then.
    async fn publish_untold(&self, signed: &Signed<Task>) -> TaskId {
        let (domain, at) = (self.follower.config.domain, self.market().now());
        let record = taskmarket::publish(at, &signed.clone().verify(&domain).unwrap()).unwrap();
        let event = Event::Published { task: Box::new(signed.clone()), domain };
        let (id, first) = (record.id, Recorded { version: record.version, at, event });
        self.market().store().publish(record, first, KeyId::of_api_key("somebody's")).await.unwrap();
        id
    }

    /// Keeps the next portion of the chain in the store and nothing else, as a relay of the same store that ends then.
    async fn keep_untaken(&self, world: &World) {
        let (domain, store) = (self.follower.config.domain, self.market().store());
        let config = WatchConfig { confirmations: CONFIRMATIONS, from_block: 0 };
        let cursor = store.chain_cursor(domain).await.unwrap();
        let mut watcher = Watcher::new(world.chain.clone(), config, cursor);
        let (to, facts) = watcher.step().await.unwrap().portion.unwrap();
        assert!(!facts.is_empty());
        assert!(store.advance_chain(domain, cursor, to, facts).await.unwrap());
    }

    async fn record(&self, id: TaskId) -> TaskRecord {
        self.market().task(id).await.unwrap().unwrap().record
    }

    async fn money(&self, id: TaskId) -> Money {
        self.record(id).await.settlement.status
    }

    /// What the chain said of a task, by its history, and what the chain's time did to it.
    async fn told(&self, id: TaskId) -> Vec<&'static str> {
        let history = self.market().store().history(id).await.unwrap();
        let word = |event: &Event| {
            let time = matches!(event, Event::ChainTime(_)).then_some("time");
            if let Event::Chain(fact) = event { Some(fact.change.name()) } else { time }
        };
        history.iter().filter_map(|event| word(&event.recorded.event)).collect()
    }

    async fn pending(&self, id: TaskId) -> Option<ChainFact> {
        let record = self.record(id).await;
        self.follower.view.pending(&record).map(|pending| pending.fact)
    }
}

async fn signed(world: &World, salt: u8) -> Signed<Task> {
    world.sign(REQUESTER, &world.task(salt).await)
}

/// A task whose provider is bound, as a follower has taken it, and when its lease ends.
async fn bound(world: &World, rig: &mut Rig, salt: u8) -> (Task, TaskId, u64) {
    let task = signed(world, salt).await;
    let id = rig.publish(&task).await;
    world.fund(&task.message).await;
    let lease_until = world.accept(&task.message, PROVIDER, 1).await;
    world.mine(CONFIRMATIONS).await;
    rig.catch_up(Instant::now()).await;
    assert_eq!(rig.told(id).await, ["funded", "accepted"]);
    (task.message, id, lease_until)
}

/// Has the proof come in the last second of the lease; the block in which that is final is later than its end.
async fn prove_at_the_last_second(world: &World, task: &Task, lease_until: u64) {
    world.next_block_at(lease_until - 1).await;
    let proof = world.proof(task, PROVIDER, 1, lease_until - 1);
    world.prove(task, &proof).await.unwrap();
    world.next_block_at(lease_until + 60).await;
    world.mine(CONFIRMATIONS + 1).await;
}

#[tokio::test]
async fn what_the_chain_said_comes_before_its_time_acts() {
    let Some(world) = world().await else { return };
    let mut rig = Rig::alone(&world).await;
    let (task, id, lease_until) = bound(&world, &mut rig, 1).await;
    // One portion has the proof and a block after the lease's end.
    prove_at_the_last_second(&world, &task, lease_until).await;
    rig.catch_up(Instant::now()).await;
    assert_eq!(rig.told(id).await, ["funded", "accepted", "proven"]);
    assert_eq!(rig.money(id).await, Money::Proven);
}

#[tokio::test]
async fn what_was_kept_and_not_taken_comes_before_the_chains_time_acts() {
    let Some(world) = world().await else { return };
    let mut rig = Rig::alone(&world).await;
    let (task, id, lease_until) = bound(&world, &mut rig, 2).await;
    prove_at_the_last_second(&world, &task, lease_until).await;
    rig.keep_untaken(&world).await;
    assert_eq!(rig.told(id).await, ["funded", "accepted"]);
    // This one was there all the time: the cursor is ahead of where it was.
    rig.catch_up(Instant::now()).await;
    assert_eq!(rig.told(id).await, ["funded", "accepted", "proven"]);
    assert_eq!(rig.money(id).await, Money::Proven);
}

#[tokio::test]
async fn tasks_that_nobody_told_of_are_found_every_ten_minutes() {
    let Some(world) = world().await else { return };
    let mut rig = Rig::alone(&world).await;
    let start = Instant::now();
    rig.catch_up(start).await;
    let (paid, unpaid) = (signed(&world, 3).await, signed(&world, 4).await);
    world.fund(&paid.message).await;
    world.mine(CONFIRMATIONS).await;
    rig.catch_up(start).await;
    let (paid, unpaid) = (rig.publish_untold(&paid).await, rig.publish_untold(&unpaid).await);
    world.next_block_at(world.now().await + 3600).await;
    world.mine(CONFIRMATIONS).await;

    let look = REREAD_EVERY;
    rig.catch_up(start + look - Duration::from_millis(1)).await;
    assert_eq!((rig.told(paid).await, rig.told(unpaid).await), (vec![], vec![]), "it looked too early");
    rig.catch_up(start + look).await;
    assert_eq!((rig.told(paid).await, rig.told(unpaid).await), (vec!["funded", "time"], vec!["time"]));
    let [paid, unpaid] = [rig.record(paid).await.status(), rig.record(unpaid).await.status()];
    assert_eq!((paid, unpaid), (Status::Expired, Status::Expired));
}

#[tokio::test]
async fn two_relays_of_one_database_give_each_fact_once_and_withdraw_what_is_gone() {
    let Some(world) = world().await else { return };
    let server = server::Server::start(server::Durability::None);
    let database = server.database();
    let mut rigs = [Rig::sharing(&world, "a", &database).await, Rig::sharing(&world, "b", &database).await];
    let now = Instant::now();

    // Both look at once, time and again: each portion is one's, and the other goes on after it.
    let mut tasks = Vec::new();
    for salt in 10..16 {
        let task = signed(&world, salt).await;
        let id = rigs[usize::from(salt) % 2].publish(&task).await;
        world.fund(&task.message).await;
        world.mine(CONFIRMATIONS).await;
        let [a, b] = &mut rigs;
        tokio::join!(a.catch_up(now), b.catch_up(now));
        tasks.push((task, id));
    }
    for (_, id) in &tasks {
        assert_eq!(rigs[0].told(*id).await, ["funded"]);
    }
    // One ends between keeping and giving; the other gives.
    let (task, id) = &tasks[0];
    world.accept(&task.message, PROVIDER, 1).await;
    world.mine(CONFIRMATIONS).await;
    rigs[0].keep_untaken(&world).await;
    rigs[1].catch_up(now).await;
    assert_eq!(rigs[1].told(*id).await, ["funded", "accepted"]);
    rigs[0].catch_up(now).await;

    // What is not final is seen by both, and withdrawn by both.
    let task = signed(&world, 16).await;
    let id = rigs[0].publish(&task).await;
    let before = world.anvil("evm_snapshot", json!([])).await;
    world.fund(&task.message).await;
    for rig in &mut rigs {
        rig.catch_up(now).await;
        let seen = rig.pending(id).await.map(|fact| fact.change);
        assert_eq!(seen, Some(ChainChange::Funded));
    }
    let gone = rigs[0].pending(id).await.unwrap();
    world.anvil("evm_revert", json!([before])).await;
    world.mine(1).await;
    for rig in &mut rigs {
        rig.catch_up(now).await;
        assert_eq!(rig.pending(id).await, None);
    }
    world.mine(CONFIRMATIONS).await;
    for rig in &mut rigs {
        rig.catch_up(now).await;
    }
    assert_eq!(rigs[1].told(id).await, [""; 0]);
    // What comes in its place counts, once.
    world.fund(&task.message).await;
    world.mine(CONFIRMATIONS).await;
    let [a, b] = &mut rigs;
    tokio::join!(a.catch_up(now), b.catch_up(now));
    assert_eq!(a.told(id).await, ["funded"]);
    let stays = b.record(id).await.settlement.facts;
    assert!(!stays.is_empty() && !stays.contains(&gone.id()));
    assert_eq!(a.follower.view.final_head(), b.follower.view.final_head());
}
