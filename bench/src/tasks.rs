//! The tasks that are published: signed, and told apart by their salts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use store::{KeyId, Options, Published, Store};
use taskmarket::{
    Address, Amount, B256, Bytes32, ContentHash, Domain, Event, Recorded, Runtime, Signed, Task, TaskConfig,
    TaskId, TaskRecord, Timestamp,
};
use wallet::Wallet;

use crate::timing::drive;

/// Requesters that publish in turn.
const REQUESTERS: u64 = 100;
const GPU_TYPES: [&str; 4] = ["A100", "H100", "RTX 4090", "L40S"];
/// What the market takes at most, less an hour for the run.
const DEADLINE_SECS: u64 = taskmarket::MAX_DEADLINE_SECS - 3600;
/// Callers that fill a store. They share flushes as far as the store lets them.
const FILLERS: usize = 2048;
/// How long one of them may wait.
const FILL_WAIT: Duration = Duration::from_secs(60);
/// Tasks that a filled store took in each second, by its tasks' times.
const FILL_PER_SEC: u64 = 1000;

/// The limits of a store that is filled: its groups are as large as its callers are many.
pub(crate) fn filling() -> Options {
    Options {
        queue: 2 * FILLERS,
        batch: FILLERS / 2,
        wait: FILL_WAIT,
        answer: FILL_WAIT,
        ..Options::default()
    }
}

/// People who publish tasks that nobody has published before.
#[derive(Debug)]
pub(crate) struct Requesters {
    wallets: Vec<Wallet>,
    next: AtomicU64,
    now: Timestamp,
}

impl Requesters {
    /// New ones, with keys of their own.
    pub(crate) fn new() -> anyhow::Result<Arc<Self>> {
        let now = Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
        let wallets = (0..REQUESTERS).map(|_| Wallet::random()).collect();
        Ok(Arc::new(Self { wallets, next: AtomicU64::new(0), now }))
    }

    /// Their addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.wallets.iter().map(Wallet::address)
    }

    /// When this run began: tasks are taken in at this time.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// The next task.
    pub(crate) fn sign(&self) -> anyhow::Result<Signed<Task>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let wallet = &self.wallets[(number % REQUESTERS) as usize];
        let gpu_type = GPU_TYPES[(number / REQUESTERS) as usize % GPU_TYPES.len()];
        let task = task(wallet.address(), gpu_type, number, self.now.plus(DEADLINE_SECS))?;
        Ok(wallet.sign(&task, &Domain::UNSETTLED)?)
    }

    /// Many tasks, signed on every processor.
    pub(crate) async fn sign_many(self: &Arc<Self>, count: usize) -> anyhow::Result<Vec<Signed<Task>>> {
        let workers = std::thread::available_parallelism()?.get();
        let share = |worker| count / workers + usize::from(worker < count % workers);
        let work = (0..workers).map(|worker| {
            let (requesters, share) = (self.clone(), share(worker));
            tokio::task::spawn_blocking(move || {
                (0..share).map(|_| requesters.sign()).collect::<anyhow::Result<Vec<_>>>()
            })
        });
        let mut tasks = Vec::with_capacity(count);
        for done in work.collect::<Vec<_>>() {
            tasks.extend(done.await??);
        }
        Ok(tasks)
    }

    /// Fills an empty store with open tasks, one after the other in time, and answers some of their ids, from all its ages.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        store: Arc<dyn Store>,
        count: u64,
        sample: usize,
    ) -> anyhow::Result<Vec<TaskId>> {
        let began = self.now.unix() - count / FILL_PER_SEC;
        let requesters = self.clone();
        let filling = store.clone();
        drive(FILLERS, (0..count).collect(), move |place| {
            let (store, requesters) = (filling.clone(), requesters.clone());
            async move {
                let at = Timestamp::from_unix(began + place / FILL_PER_SEC);
                publish(&*store, requesters.sign()?, at).await
            }
        })
        .await?;
        let table = store::TABLES.iter().find(|table| table.name == "tasks").context("no table of tasks")?;
        let mut ids = Vec::with_capacity(sample);
        let sample = if count == 0 { 0 } else { sample };
        for place in 0..sample as u64 {
            let after = store::Value::Int((place * count / sample as u64).cast_signed());
            let rows = store.rows(table, Some(vec![after]), 1).await?;
            let Some(store::Value::Bytes(id)) = rows.first().and_then(|row| row.get(1)) else {
                bail!("the store has no task after row {place}");
            };
            ids.push(TaskId(B256::try_from(id.as_slice())?));
        }
        Ok(ids)
    }
}

/// What the market does with a published task: checks the signature and the rules, and stores it.
pub(crate) async fn publish(store: &dyn Store, task: Signed<Task>, at: Timestamp) -> anyhow::Result<()> {
    let (record, first) = admit(task, at)?;
    keep(store, record, first).await
}

/// Checks a task's signature and the rules.
pub(crate) fn admit(task: Signed<Task>, at: Timestamp) -> anyhow::Result<(TaskRecord, Recorded)> {
    let task = task.verify(&Domain::UNSETTLED)?;
    let record = taskmarket::publish(at, &task)?;
    let event = Event::Published { task: Box::new(task.into_signed()), domain: Domain::UNSETTLED };
    let first = Recorded { version: record.version, at, event };
    Ok((record, first))
}

/// Stores a new task.
pub(crate) async fn keep(store: &dyn Store, record: TaskRecord, first: Recorded) -> anyhow::Result<()> {
    match store.publish(record, first, KeyId::of_api_key("bench")).await? {
        Published::New { .. } => Ok(()),
        Published::Existing(task) => bail!("task {} is there already", task.record.id),
    }
}

fn task(requester: Address, gpu_type: &str, number: u64, deadline: Timestamp) -> anyhow::Result<Task> {
    Ok(Task {
        requester,
        model_cid: "ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi".parse()?,
        model_hash: ContentHash(B256::repeat_byte(0x11)),
        input_cid: "https://inputs.example/batches/one.json".parse()?,
        input_hash: ContentHash(B256::repeat_byte(0x22)),
        config: TaskConfig {
            runtime: Runtime::Embed,
            params: "{}".to_owned(),
            gpu_type: gpu_type.to_owned(),
            gpu_count: 1,
            min_vram: 16_384,
            max_duration: 600,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline,
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: Address::ZERO,
        salt: Bytes32(B256::left_padding_from(&number.to_be_bytes())),
    })
}
