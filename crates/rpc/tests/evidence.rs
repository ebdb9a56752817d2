//! Evidence: what it states, and that nothing in it can be changed unnoticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use rpc::evidence::{Evidence, EvidenceEvent, FORMAT, SessionEvidence, verify};
use rpc::relay::DomainView;
use rpc::tasks::SignedMutation;
use serde_json::Value;
use taskmarket::{
    AcceptTask, Address, Amount, B256, Bytes32, CancelTask, ComputeProof, ContentHash, DisputeTask, Domain,
    Event, FailTask, Message, Mutation, Recorded, RegisterNode, ReleaseReason, Runtime, Task, TaskConfig,
    TaskRecord, Timestamp, Verified, Word, apply, decide, elapse, keccak256, publish, release,
};
use wallet::Wallet;

const START: u64 = 1_700_000_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix(START + seconds)
}

fn signed<M: Message>(wallet: &Wallet, message: &M) -> Verified<M> {
    wallet.sign(message, &Domain::UNSETTLED).unwrap().verify(&Domain::UNSETTLED).unwrap()
}

/// A task as its history is made.
struct Story {
    requester: Wallet,
    provider: Wallet,
    record: TaskRecord,
    events: Vec<EvidenceEvent>,
}

impl Story {
    fn begin() -> Self {
        let requester = Wallet::from_hex(&"11".repeat(32)).unwrap();
        let provider = Wallet::from_hex(&"22".repeat(32)).unwrap();
        let task = Task {
            requester: requester.address(),
            model_cid: "https://models.example/m.wasm".parse().unwrap(),
            model_hash: ContentHash::UNPINNED,
            input_cid: "https://inputs.example/i.json".parse().unwrap(),
            input_hash: ContentHash::UNPINNED,
            config: TaskConfig {
                runtime: Runtime::Wasm,
                params: "{}".to_owned(),
                gpu_type: "A100".to_owned(),
                gpu_count: 1,
                min_vram: 0,
                max_duration: 600,
                max_attempts: 4,
            },
            token: Address::ZERO,
            budget: "10000000000000000".parse::<Amount>().unwrap(),
            provider_stake: Amount::ZERO,
            dispute_bond: Amount::ZERO,
            deadline: at(100_000),
            dispute_window: 86_400,
            arbiter_window: 604_800,
            arbiter: Address::ZERO,
            salt: Bytes32(B256::repeat_byte(9)),
        };
        let task = signed(&requester, &task);
        let record = publish(at(0), &task).unwrap();
        let event = Event::Published { task: Box::new(task.into_signed()), domain: Domain::UNSETTLED };
        let recorded = Recorded { version: 1, at: at(0), event };
        let events = vec![EvidenceEvent::new(recorded, record.status())];
        Self { requester, provider, record, events }
    }

    fn commit(&mut self, at: Timestamp, event: Event) {
        apply(&mut self.record, at, &event);
        let recorded = Recorded { version: self.record.version, at, event };
        self.events.push(EvidenceEvent::new(recorded, self.record.status()));
    }

    fn mutate(&mut self, at: Timestamp, mutation: Mutation) {
        let event = decide(&self.record, at, &mutation).unwrap().unwrap();
        self.commit(at, event);
    }

    fn elapse(&mut self, now: Timestamp) {
        let event = elapse(&self.record, now).unwrap();
        self.commit(now, event);
    }

    fn accept(&mut self, now: Timestamp) {
        let message = AcceptTask {
            task_id: self.record.id,
            provider: self.provider.address(),
            attempt: self.record.attempts + 1,
            lease_until: now.plus(900),
        };
        self.mutate(now, Mutation::Accept(signed(&self.provider, &message)));
    }

    /// Two attempts that come to nothing.
    fn struggle(&mut self) {
        self.accept(at(10));
        let lost = release(&self.record, 1, ReleaseReason::SessionLost).unwrap();
        self.commit(at(60), lost);
        self.accept(at(70));
        let message = FailTask {
            task_id: self.record.id,
            provider: self.provider.address(),
            attempt: 2,
            code: "out_of_fuel".to_owned(),
            message: "it ran dry".to_owned(),
            issued_at: at(80),
        };
        self.mutate(at(80), Mutation::Fail(signed(&self.provider, &message)));
    }

    fn deliver(&mut self) {
        self.accept(at(90));
        let message = ComputeProof {
            task_id: self.record.id,
            provider: self.provider.address(),
            attempt: self.record.attempts,
            model_hash: ContentHash(B256::repeat_byte(1)),
            input_hash: ContentHash(B256::repeat_byte(2)),
            result_hash: ContentHash(B256::repeat_byte(3)),
            result_cid: format!("artifact://{}", "03".repeat(32)).parse().unwrap(),
            started_at: at(91),
            finished_at: at(99),
            gpu_name: "NVIDIA A100".to_owned(),
        };
        self.mutate(at(100), Mutation::Proof(signed(&self.provider, &message)));
    }

    fn dispute(&mut self) {
        let message = DisputeTask {
            task_id: self.record.id,
            provider: self.provider.address(),
            attempt: self.record.attempts,
            result_hash: ContentHash(B256::repeat_byte(3)),
            reason: "it is wrong".to_owned(),
            evidence: String::new(),
            issued_at: at(110),
        };
        self.mutate(at(110), Mutation::Dispute(signed(&self.requester, &message)));
    }

    /// A session that ended, with the provider's word for it; or one that lasts, without.
    fn session(&self, has_word: bool) -> SessionEvidence {
        let metadata = r#"{"slots":1}"#.to_owned();
        let registration = RegisterNode {
            provider: self.provider.address(),
            node_id: Bytes32(B256::repeat_byte(7)),
            relay_id: "hz-1".to_owned(),
            relay_url: "wss://relay.example/v1/provider/connect".to_owned(),
            session_id: "00ff".to_owned(),
            nonce: Bytes32(B256::repeat_byte(8)),
            timestamp: at(4),
            metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
        };
        let word = self.provider.sign(&registration, &Domain::UNSETTLED).unwrap();
        SessionEvidence {
            session_id: registration.session_id,
            provider: registration.provider,
            node_id: registration.node_id,
            relay_id: registration.relay_id,
            generation: 3,
            connected_at: at(5),
            disconnected_at: has_word.then(|| at(50)),
            reason: has_word.then(|| "the peer closed".to_owned()),
            registration: has_word.then(|| SignedMutation::from(word)),
            metadata,
        }
    }

    fn evidence(&self) -> Evidence {
        let sessions = vec![self.session(true), self.session(false)];
        Evidence {
            format: FORMAT.to_owned(),
            relay_id: "hz-1".to_owned(),
            relay_version: "0.1.0".to_owned(),
            written_at: self.record.updated_at.plus(1),
            task_id: self.record.id,
            domain: DomainView::from(self.record.domain),
            task: self.record.task.clone(),
            signature: self.record.signature,
            status: self.record.status(),
            settlement: self.record.settlement.as_str().to_owned(),
            events: self.events.clone(),
            sessions: if self.record.attempts > 0 { sessions } else { Vec::new() },
            chain: Vec::new(),
        }
    }
}

/// A disputed task, one whose result stood, one that nobody did, and one that was withdrawn.
fn stories() -> [Evidence; 4] {
    let mut disputed = Story::begin();
    disputed.struggle();
    disputed.deliver();
    disputed.dispute();
    disputed.elapse(at(110 + 604_800));
    let mut stood = Story::begin();
    stood.deliver();
    stood.elapse(at(100 + 86_400));
    let mut undone = Story::begin();
    undone.accept(at(10));
    undone.elapse(at(910));
    undone.elapse(at(100_000));
    let mut cancelled = Story::begin();
    let cancel = CancelTask { task_id: cancelled.record.id, issued_at: at(3) };
    let cancel = signed(&cancelled.requester, &cancel);
    cancelled.mutate(at(3), Mutation::Cancel(cancel));
    [disputed, stood, undone, cancelled].map(|story| story.evidence())
}

#[test]
fn statements_say_whose_word_they_are() {
    let [disputed, stood, undone, _] = stories();
    let story = Story::begin();
    let (requester, provider) = (story.requester.address(), story.provider.address());
    let report = verify(&disputed).unwrap();
    let said = |word: Word, signer: Option<Address>, part: &str| {
        let found = report.statements.iter().find(|statement| statement.text.contains(part));
        let statement = found.unwrap_or_else(|| panic!("nothing says {part:?}: {report:#?}"));
        assert_eq!((statement.word, statement.signer), (word, signer), "{}", statement.text);
    };
    let delivered = format!("provider {provider} delivered result {}", "03".repeat(32));
    said(Word::Signature, Some(requester), &format!("requester {requester} published task"));
    said(Word::Signature, Some(provider), &delivered);
    said(Word::Signature, Some(provider), "gave attempt 2 up: out_of_fuel");
    said(Word::Relay, None, "because the session was lost; nothing else proves it");
    said(Word::Signature, Some(requester), "disputed result");
    said(Word::Time, None, "the arbiter did not decide in time: so says the relay's record");
    said(Word::Signature, Some(provider), "registered host");
    said(Word::Relay, None, "began 2023-11-14T22:13:25Z until 2023-11-14T22:14:10Z (\"the peer closed\")");
    said(Word::Relay, None, "nothing followed the last of these");

    let has = |evidence: &Evidence, part: &str| {
        verify(evidence).unwrap().statements.iter().any(|statement| statement.text.contains(part))
    };
    assert!(has(&stood, "the requester did not dispute in time"));
    assert!(has(&undone, "brought no proof of attempt 1 before its lease ended"));
    assert!(has(&undone, "no proof came before the deadline, 2023-11-16T02:00:00Z"));
    assert!(has(&undone, "absence is proved by the chain alone"));
}

#[test]
fn evidence_survives_its_text() {
    for evidence in stories() {
        let text = serde_json::to_string_pretty(&evidence).unwrap();
        assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence, "{text}");
    }
}

/// Whatever a changed document says, it is refused, or its report says something else than the true one's. `false` if it reads as the
/// very same document.
fn assert_noticed(original: &Evidence, changed: &Value, what: &str) -> bool {
    let Ok(parsed) = serde_json::from_value::<Evidence>(changed.clone()) else { return true };
    if parsed == *original {
        return false;
    }
    if let Ok(report) = verify(&parsed) {
        assert_ne!(report, verify(original).unwrap(), "a change of {what} went unnoticed");
    }
    true
}

#[test]
fn no_field_can_be_changed_unnoticed() {
    for evidence in stories() {
        let value = serde_json::to_value(&evidence).unwrap();
        let mut noticed = 0;
        for pointer in leaves(&value) {
            for other in others(value.pointer(&pointer).unwrap()) {
                let mut changed = value.clone();
                *changed.pointer_mut(&pointer).unwrap() = other.clone();
                let what = format!("{pointer} to {other}");
                noticed += usize::from(assert_noticed(&evidence, &changed, &what));
            }
        }
        assert!(noticed > 100, "{noticed}");
    }
}

#[test]
fn nothing_can_be_left_out_added_or_moved_unnoticed() {
    for evidence in stories() {
        let value = serde_json::to_value(&evidence).unwrap();
        for list in ["events", "sessions"] {
            for position in 0..value[list].as_array().unwrap().len() {
                let mut without = value.clone();
                without[list].as_array_mut().unwrap().remove(position);
                assert!(assert_noticed(&evidence, &without, &format!("{list} without {position}")));
                let mut twice = value.clone();
                let entry = value[list][position].clone();
                twice[list].as_array_mut().unwrap().insert(position, entry);
                assert!(assert_noticed(&evidence, &twice, &format!("{list} with {position} twice")));
                if position > 0 {
                    let mut moved = value.clone();
                    moved[list].as_array_mut().unwrap().swap(position - 1, position);
                    assert!(assert_noticed(&evidence, &moved, &format!("{list} with {position} moved")));
                }
            }
        }
        let mut extra = value.clone();
        extra["note"] = "trust me".into();
        assert!(serde_json::from_value::<Evidence>(extra).is_err());
    }
}

#[test]
fn refusals_name_what_is_wrong() {
    let [disputed, ..] = stories();
    type Change = fn(&mut Evidence);
    let changes: [(Change, &str); 8] = [
        (|evidence| evidence.format = "zorai-evidence.v2".to_owned(), "this checks zorai-evidence.v1"),
        (|evidence| evidence.status = taskmarket::Status::Completed, "status: "),
        (|evidence| evidence.events[2].word = Word::Signature, "events[2].word: "),
        (|evidence| evidence.events[1].status = taskmarket::Status::Open, "events[1].status: "),
        (|evidence| evidence.sessions[0].metadata.push(' '), "sessions[0].metadata: "),
        (|evidence| evidence.sessions[0].relay_id = "jp-2".to_owned(), "sessions[0].registration: "),
        (|evidence| evidence.sessions[1].provider = Address::ZERO, "sessions[1].provider: "),
        (|evidence| evidence.written_at = at(0), "written_at: "),
    ];
    for (change, named) in changes {
        let mut evidence = disputed.clone();
        change(&mut evidence);
        let error = verify(&evidence).unwrap_err().to_string();
        assert!(error.contains(named), "{named:?}: {error}");
    }
}

/// The places of all values that hold no others.
fn leaves(value: &Value) -> Vec<String> {
    let below = |key: &str, value: &Value| {
        leaves(value).into_iter().map(|rest| format!("/{key}{rest}")).collect::<Vec<_>>()
    };
    match value {
        Value::Object(map) => map.iter().flat_map(|(key, value)| below(key, value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(index, value)| below(&index.to_string(), value)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![String::new()],
    }
}

/// Other values in place of one.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Null => vec!["2026-01-01T00:00:00Z".into(), "x".into(), 1.into()],
        Value::Bool(value) => vec![(!value).into()],
        Value::Number(number) => {
            let number = number.as_u64().unwrap();
            vec![(number + 1).into(), number.saturating_sub(1).into(), 0.into(), Value::Null]
        }
        Value::String(text) => {
            let mut all: Vec<Value> = vec!["".into(), Value::Null, format!("{text}x").into()];
            let last = text.len().saturating_sub(1);
            for position in [0, 2, text.len() / 2, last.saturating_sub(1), last] {
                for other in ['0', '1', 'f'] {
                    let mut changed: Vec<char> = text.chars().collect();
                    if let Some(place) = changed.get_mut(position) {
                        *place = other;
                        all.push(changed.into_iter().collect::<String>().into());
                    }
                }
            }
            if let Ok(time) = text.parse::<Timestamp>() {
                all.push(time.plus(1).to_string().into());
                all.push(Timestamp::from_unix(time.unix() - 1).to_string().into());
            }
            all.extend(["open", "submitted", "time", "relay"].map(Value::from));
            all
        }
        Value::Array(_) | Value::Object(_) => Vec::new(),
    }
}
