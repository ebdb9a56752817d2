//! Records of what was served: receipts are checked away from the requests, and kept in groups, within a second.
//!
//! What a kill can lose is what was served since the group before: [`GATHER`] and the time of one commit, and while the store fails, what
//! waits for it, [`MAX_WAITING`] records at most.

use std::sync::Arc;
use std::time::Duration;

use rpc::inference::{Outcome, ReceiptView, UsageSource};
use rpc::tasks::SignedMutation;
use store::{KeyId, Store, StoreError};
use taskmarket::{ContentHash, Domain, InferenceReceipt, Signed};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::meter::MAX_TOKENS;
use super::tally::{RequestHash, cost};

/// How long records are gathered that are then committed together.
const GATHER: Duration = Duration::from_millis(300);
/// Records that wait to be gathered at most. Further ones are lost, and said to be.
const QUEUE: usize = 16_384;
/// Records that wait for a store that fails at most.
const MAX_WAITING: usize = 65_536;
/// Records in one commit at most.
const GROUP: usize = 1024;
/// How long who wants to read records waits for those on their way.
const FLUSH: Duration = Duration::from_secs(2);
/// The longest receipt, in bytes.
const MAX_RECEIPT_BYTES: usize = 8 * 1024;

/// A request that was served.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) owner: KeyId,
    pub(super) view: ReceiptView,
    /// The receipt as it came.
    pub(super) receipt: Option<Vec<u8>>,
    pub(super) relay_id: Arc<str>,
    pub(super) request_hash: RequestHash,
    pub(super) response_hash: [u8; 32],
}

enum Message {
    Served(Box<Record>),
    Flush(oneshot::Sender<()>),
}

/// Where records go.
pub(super) struct Records(mpsc::Sender<Message>);

/// What keeps them.
pub(crate) struct Keeper {
    queue: mpsc::Receiver<Message>,
    store: Arc<dyn Store>,
    waiting: Vec<store::Receipt>,
}

/// Records and their keeper.
pub(super) fn records(store: Arc<dyn Store>) -> (Records, Keeper) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Records(sender), Keeper { queue, store, waiting: Vec::new() })
}

impl Records {
    /// Has a record kept.
    pub(super) fn keep(&self, record: Record) {
        if let Err(error) = self.0.try_send(Message::Served(Box::new(record))) {
            tracing::error!(%error, "the record of an inference request is lost");
        }
    }

    /// Waits until what was served before now is kept, or the store takes too long.
    pub(super) async fn flush(&self) {
        let (done, kept) = oneshot::channel();
        let flushed = async {
            if self.0.send(Message::Flush(done)).await.is_ok() {
                let _ = kept.await;
            }
        };
        if timeout(FLUSH, flushed).await.is_err() {
            tracing::warn!("records of inference requests are late");
        }
    }
}

impl Keeper {
    /// Keeps records until `stopping` is cancelled, and then those that wait.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        loop {
            let first = match stopping.run_until_cancelled(self.queue.recv()).await {
                Some(Some(first)) => first,
                Some(None) | None => break,
            };
            let mut flushes = Vec::new();
            let mut group = Vec::new();
            sort(first, &mut group, &mut flushes);
            if flushes.is_empty() {
                let gathered = self.gather(&mut group, &mut flushes);
                let _ = timeout(GATHER, stopping.run_until_cancelled(gathered)).await;
            }
            self.keep(group).await;
            drop(flushes);
        }
        let mut group = Vec::new();
        while let Ok(message) = self.queue.try_recv() {
            sort(message, &mut group, &mut Vec::new());
        }
        self.keep(group).await;
    }

    /// Takes records until there are enough, or somebody waits for them.
    async fn gather(&mut self, group: &mut Vec<Record>, flushes: &mut Vec<oneshot::Sender<()>>) {
        while group.len() < GROUP && flushes.is_empty() {
            let Some(message) = self.queue.recv().await else { return };
            sort(message, group, flushes);
        }
    }

    async fn keep(&mut self, group: Vec<Record>) {
        let checked = group.into_iter().map(async |mut record| {
            let request_hash = match &mut record.request_hash {
                RequestHash::Known(hash) => Some(*hash),
                RequestHash::Pending(hash) => hash.await.ok(),
                RequestHash::Taken => None,
            };
            (record, request_hash)
        });
        let mut hashed = Vec::new();
        for record in checked {
            hashed.push(record.await);
        }
        match spawn_blocking(move || hashed.into_iter().map(|(record, hash)| row(record, hash)).collect())
            .await
        {
            Ok(rows) => self.waiting.extend::<Vec<_>>(rows),
            Err(error) => tracing::error!(%error, "records of inference requests are lost"),
        }
        while !self.waiting.is_empty() {
            let rows = self.waiting[..self.waiting.len().min(GROUP)].to_vec();
            let count = rows.len();
            match self.store.add_receipts(rows).await {
                Ok(()) => drop(self.waiting.drain(..count)),
                // Whether they were kept is not known: to lose some is better than to count their tokens twice.
                Err(error @ StoreError::TimedOut) => {
                    tracing::error!(%error, records = count, "records of inference requests may be lost");
                    self.waiting.drain(..count);
                }
                Err(error) => {
                    tracing::warn!(%error, records = self.waiting.len(), "records of inference requests wait");
                    if self.waiting.len() > MAX_WAITING {
                        let lost = self.waiting.len() - MAX_WAITING;
                        tracing::error!(records = lost, "records of inference requests are lost");
                        self.waiting.drain(..lost);
                    }
                    return;
                }
            }
        }
    }
}

fn sort(message: Message, group: &mut Vec<Record>, flushes: &mut Vec<oneshot::Sender<()>>) {
    match message {
        Message::Served(record) => group.push(*record),
        Message::Flush(done) => flushes.push(done),
    }
}

/// Checks a record's receipt, and makes a row of it.
fn row(record: Record, request_hash: Option<[u8; 32]>) -> store::Receipt {
    let Record { owner, mut view, receipt, relay_id, response_hash, .. } = record;
    match receipt {
        None => view.fault = Some("the provider sent no receipt".to_owned()),
        Some(receipt) => match check(&receipt, &view, &relay_id, request_hash, response_hash) {
            Ok(receipt) => {
                if view.usage_source == UsageSource::Deltas {
                    view.prompt_tokens = receipt.mutation.prompt_tokens.min(MAX_TOKENS);
                    if let (Some(prompt), Some(completion)) = (view.prompt_price, view.completion_price)
                        && view.outcome != Outcome::Failed
                    {
                        view.cost = cost((view.prompt_tokens, prompt), (view.completion_tokens, completion));
                    }
                }
                view.receipt = Some(receipt);
            }
            Err(fault) => {
                tracing::warn!(provider = %view.provider, request_id = view.request_id, fault, "a receipt does not hold");
                view.fault = Some(fault);
            }
        },
    }
    store::Receipt {
        owner,
        request_id: view.request_id.clone(),
        at: view.at,
        model: view.model.clone(),
        prompt_tokens: view.prompt_tokens,
        completion_tokens: view.completion_tokens,
        record: serde_json::to_string(&view).expect("a record has string keys and no failing fields"),
    }
}

/// Checks that a receipt is the provider's, and says of request and answer what the relay saw.
fn check(
    receipt: &[u8],
    view: &ReceiptView,
    relay_id: &str,
    request_hash: Option<[u8; 32]>,
    response_hash: [u8; 32],
) -> Result<SignedMutation<InferenceReceipt>, String> {
    if receipt.len() > MAX_RECEIPT_BYTES {
        return Err(format!("the receipt is longer than {MAX_RECEIPT_BYTES} bytes"));
    }
    let signed: SignedMutation<InferenceReceipt> =
        serde_json::from_slice(receipt).map_err(|error| format!("the receipt cannot be read: {error}"))?;
    let said = &signed.mutation;
    let hash = |hash: [u8; 32]| ContentHash(hash.into());
    let is_counted = view.usage_source == UsageSource::Deltas;
    let agreed = [
        ("request_id", said.request_id == view.request_id),
        ("provider", said.provider == view.provider),
        ("node_id", said.node_id == view.node_id),
        ("relay_id", said.relay_id == relay_id),
        ("model", said.model == view.model),
        ("request_hash", request_hash.map(hash) == Some(said.request_hash)),
        ("response_hash", hash(response_hash) == said.response_hash),
        ("prompt_tokens", is_counted || said.prompt_tokens == view.prompt_tokens),
        ("completion_tokens", is_counted || said.completion_tokens == view.completion_tokens),
    ];
    if let Some((field, _)) = agreed.iter().find(|(_, agrees)| !agrees) {
        return Err(format!("the receipt's {field} is not what the relay saw"));
    }
    let verified = Signed::from(signed.clone()).verify(&Domain::UNSETTLED);
    verified.map(|_| signed).map_err(|error| error.to_string())
}
