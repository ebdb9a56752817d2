//! Tasks and events to store. Their signatures are well-formed but hold nothing: the store does not check them.

use store::{Commit, KeyId, Placement, Published, Receipt, Store};
use taskmarket::{
    AcceptTask, Address, Amount, B256, Bytes32, CancelTask, ComputeProof, ContentHash, Domain, Event,
    FailTask, Recorded, Runtime, Settlement, Signature, Signed, State, Task, TaskConfig, TaskRecord,
    Timestamp, apply,
};

/// When everything begins.
pub(crate) const START: u64 = 1_800_000_000;

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix(START + seconds)
}

pub(crate) fn address(byte: u8) -> Address {
    Address::repeat_byte(byte)
}

pub(crate) fn node(byte: u8) -> Bytes32 {
    Bytes32(B256::repeat_byte(byte))
}

pub(crate) fn owner() -> KeyId {
    KeyId::of_api_key("test key")
}

/// A record of inference for [`owner`], of so many tokens each way.
pub(crate) fn receipt(request_id: &str, tokens: u64) -> Receipt {
    Receipt {
        owner: owner(),
        request_id: request_id.into(),
        at: at(tokens),
        model: "m".into(),
        prompt_tokens: tokens,
        completion_tokens: 2 * tokens,
        record: format!("{{\"tokens\":{tokens}}}"),
    }
}

pub(crate) fn signed<M>(message: M) -> Signed<M> {
    let mut bytes = [1; 65];
    bytes[64] = 27;
    Signed { message, signature: Signature::from_bytes(bytes).unwrap() }
}

/// A task of requester 1 for an A100, published at [`START`], told apart by its salt.
pub(crate) fn task(salt: u64) -> Task {
    Task {
        requester: address(1),
        model_cid: "https://models.example/m".parse().unwrap(),
        model_hash: ContentHash::UNPINNED,
        input_cid: "https://inputs.example/i".parse().unwrap(),
        input_hash: ContentHash::UNPINNED,
        config: TaskConfig {
            runtime: Runtime::Embed,
            params: "{}".into(),
            gpu_type: "A100".into(),
            gpu_count: 1,
            min_vram: 40_960,
            max_duration: 600,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: Amount::ZERO,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: at(3600),
        dispute_window: 86_400,
        arbiter_window: 604_800,
        arbiter: Address::ZERO,
        salt: Bytes32(B256::left_padding_from(&salt.to_be_bytes())),
    }
}

/// The record and first event of a task.
pub(crate) fn published(task: Task, when: Timestamp) -> (TaskRecord, Recorded) {
    let domain = Domain::UNSETTLED;
    let task = signed(task);
    let record = TaskRecord {
        id: task.message.id(&domain),
        domain,
        task: task.message.clone(),
        signature: task.signature,
        state: State::Open,
        attempts: 0,
        provider: None,
        lapsed: vec![],
        failure: None,
        faults: Vec::new(),
        settlement: Settlement::default(),
        complaint: None,
        reservations: 0,
        created_at: when,
        updated_at: when,
        version: 1,
    };
    let event = Event::Published { task: Box::new(task), domain };
    (record, Recorded { version: 1, at: when, event })
}

/// Publishes a task and answers its record.
pub(crate) async fn publish(store: &dyn Store, task: Task, when: Timestamp) -> TaskRecord {
    let (record, first) = published(task, when);
    let published = store.publish(record.clone(), first, owner()).await.unwrap();
    assert!(matches!(published, Published::New { .. }));
    record
}

/// Applies events to a record, and answers them in their places.
pub(crate) fn record_events(record: &mut TaskRecord, when: Timestamp, events: Vec<Event>) -> Vec<Recorded> {
    events
        .into_iter()
        .map(|event| {
            apply(record, when, &event);
            Recorded { version: record.version, at: when, event }
        })
        .collect()
}

/// Commits events on top of a record, which must go well.
pub(crate) async fn commit(
    store: &dyn Store,
    record: &mut TaskRecord,
    when: Timestamp,
    events: Vec<Event>,
    node: Option<Bytes32>,
) -> u64 {
    commit_placed(store, record, when, events, node.map(Placement::from)).await
}

/// Commits events with all that is known of where an attempt went.
pub(crate) async fn commit_placed(
    store: &dyn Store,
    record: &mut TaskRecord,
    when: Timestamp,
    events: Vec<Event>,
    placement: Option<Placement>,
) -> u64 {
    let expected = record.version;
    let events = record_events(record, when, events);
    match store.commit(expected, record, events, placement).await.unwrap() {
        Commit::Done { seq } => seq,
        Commit::Conflict => panic!("conflict at version {expected}"),
    }
}

pub(crate) fn accepted(record: &TaskRecord, provider: Address, lease_until: Timestamp) -> Event {
    let attempt = record.attempts + 1;
    Event::Accepted(signed(AcceptTask { task_id: record.id, provider, attempt, lease_until }))
}

pub(crate) fn failed(record: &TaskRecord, provider: Address) -> Event {
    Event::AttemptFailed(signed(FailTask {
        task_id: record.id,
        provider,
        attempt: record.attempts,
        code: "out_of_memory".into(),
        message: "é \" \u{0} 'quoted'".into(),
        issued_at: record.updated_at,
    }))
}

pub(crate) fn submitted(record: &TaskRecord, provider: Address) -> Event {
    Event::Submitted(signed(ComputeProof {
        task_id: record.id,
        provider,
        attempt: record.attempts,
        model_hash: ContentHash::UNPINNED,
        input_hash: ContentHash::UNPINNED,
        result_hash: ContentHash::UNPINNED,
        result_cid: "https://results.example/r".parse().unwrap(),
        started_at: record.updated_at,
        finished_at: record.updated_at,
        gpu_name: "NVIDIA A100".into(),
    }))
}

pub(crate) fn cancelled(record: &TaskRecord) -> Event {
    Event::Cancelled(signed(CancelTask { task_id: record.id, issued_at: record.updated_at }))
}
