//! Writes the seeds that programs make: `cargo run -p fuzz --example seeds`. To be run after a wire type or a rule has changed;
//! the same code writes the same seeds. Those in the corpus that it does not name are written by hand.

use std::error::Error;
use std::path::{Path, PathBuf};

use rpc::evidence::{Evidence, EvidenceEvent, FORMAT, SessionEvidence};
use rpc::link::{
    Assignment, AttemptKey, DeviceKind, DeviceView, Heartbeat, HeldAttempt, Hello, NodeMetadata, Register,
    Welcome,
};
use rpc::relay::DomainView;
use rpc::tasks::{Phase, Progress, PublishTask, SignedMutation};
use serde::Serialize;
use serde_json::Value;
use taskmarket::{
    B256, Bytes32, ChainFact, ContentHash, Domain, Event, Recorded, RegisterNode, Runtime, Timestamp,
    keccak256, replay,
};
use wallet::Wallet;

/// Scripts for `fuzz::history_script`, by what they lead to. The first byte holds the settings: bit 0 a settled task, bit 1 an arbiter,
/// bits 2 and 3 further attempts, bit 4 a close deadline. Then what happens, the square root of the seconds before it, and its variant.
const SCRIPTS: &[(&str, &[u8])] = &[
    ("open", &[0]),
    ("approved", &[6, 0, 1, 96, 3, 2, 0, 5, 2, 0]),
    ("window-closed", &[6, 0, 1, 96, 3, 2, 0, 9, 100, 0]),
    ("resolved", &[6, 0, 1, 96, 3, 2, 0, 6, 2, 0, 7, 2, 96]),
    ("arbiter-timed-out", &[6, 0, 1, 96, 3, 2, 0, 6, 2, 0, 9, 100, 0]),
    ("lapsed-then-failed", &[6, 0, 1, 96, 9, 30, 0, 0, 1, 97, 2, 1, 1]),
    ("released", &[14, 0, 1, 96, 9, 1, 0, 0, 1, 96, 10, 1, 0]),
    ("cancelled", &[0, 8, 1, 0]),
    ("expired", &[16, 0, 1, 255, 9, 255, 0]),
    ("chain-paid", &[3, 11, 1, 0, 12, 1, 96, 3, 1, 0, 14, 1, 0, 15, 1, 0]),
    ("chain-split", &[3, 11, 1, 0, 12, 1, 96, 3, 1, 0, 14, 1, 0, 16, 1, 0, 17, 1, 96]),
    ("chain-refunded", &[7, 11, 1, 0, 12, 1, 96, 13, 1, 0, 18, 1, 0]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = root.join("corpus");
    for (name, script) in SCRIPTS {
        let history = fuzz::history_of(script);
        write(&corpus, "history_script", &format!("ok-{name}"), script)?;
        write_json(&corpus, "history", name, &history)?;
        write_json(&corpus, "evidence", name, &evidence_of(&history)?)?;
    }
    vectors(&corpus, &std::fs::read_to_string(root.join("../vectors/eip712.json"))?)?;
    handshake(&corpus)
}

/// The test vectors as messages on a wire.
fn vectors(corpus: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let file: Value = serde_json::from_str(text)?;
    for vector in file["vectors"].as_array().ok_or("no vectors")? {
        let id = vector["id"].as_str().ok_or("no id")?;
        let name = id.to_lowercase().replace('/', "-");
        let (message, signature) = (&vector["message"], &vector["signature"]);
        let is_task = vector["type"] == "Task";
        if id.ends_with("plain") || (id.contains("unsettled") && !is_task) {
            let body = serde_json::json!({ "mutation": message, "signature": signature });
            write_json(corpus, "signed_message", &name, &body)?;
        }
        if is_task {
            let contract = &vector["domain"]["verifying_contract"];
            let body = serde_json::json!({ "task": message, "signature": signature, "verifying_contract": contract });
            write_json(corpus, "publish_task", &name, &body)?;
        }
    }
    Ok(())
}

fn handshake(corpus: &Path) -> Result<(), Box<dyn Error>> {
    let history = fuzz::history_of(&[0]);
    let Some(Event::Published { task, domain }) = history.first().map(|first| &first.event) else {
        return Err("a history begins with its task".into());
    };
    let task_id = task.message.id(domain);
    let body = PublishTask {
        task: task.message.clone(),
        signature: task.signature,
        verifying_contract: domain.verifying_contract,
        callback_url: Some("https://hooks.example/zorai".to_owned()),
    };
    write_json(corpus, "publish_task", "callback", &body)?;

    let (registration, metadata) = registration()?;
    let attempt = AttemptKey { task_id, attempt: 1 };
    let progress = Progress { attempt: 1, phase: Phase::Running, percent: Some(40) };
    let held = HeldAttempt { task_id, progress };
    let hello = Hello {
        relay_id: "relay-1".to_owned(),
        session_id: "s-1".to_owned(),
        nonce: registration.mutation.nonce,
        domains: vec![Domain::UNSETTLED.into()],
    };
    let register = Register {
        registration: registration.mutation,
        metadata: metadata.clone(),
        signature: registration.signature,
        attempts: vec![held.clone()],
        unacked_proofs: vec![attempt],
    };
    let welcome = Welcome { accepted: true, generation: 2, heartbeat_secs: 15, drop: vec![attempt] };
    let assignment = Assignment {
        task_id,
        attempt: 1,
        task: task.message.clone(),
        signature: task.signature,
        domain: DomainView::from(*domain),
        attempt_token: "t".repeat(43),
    };
    let heartbeat = Heartbeat {
        at: Timestamp::from_unix(1_700_000_000),
        busy: 1,
        slots: 2,
        free_vram_mb: vec![81_920],
        warm_models: vec![ContentHash(B256::repeat_byte(0xab))],
        models: Vec::new(),
        unhealthy: Some("the GPU is hot".to_owned()),
        attempts: vec![held],
    };
    write_json(corpus, "handshake", "hello", &hello)?;
    write_json(corpus, "handshake", "register", &register)?;
    write_json(corpus, "handshake", "welcome", &welcome)?;
    write_json(corpus, "handshake", "assignment", &assignment)?;
    write_json(corpus, "handshake", "heartbeat", &heartbeat)?;
    write(corpus, "handshake", "ok-metadata.json", metadata.as_bytes())
}

/// The registration of the scripts' first provider, and its metadata.
fn registration() -> Result<(SignedMutation<RegisterNode>, String), Box<dyn Error>> {
    let gpu = DeviceView {
        kind: DeviceKind::Gpu,
        name: "NVIDIA A100-SXM4-80GB".to_owned(),
        vram_mb: 81_920,
        uuid: Some("GPU-1".to_owned()),
    };
    let metadata = serde_json::to_string(&NodeMetadata {
        agent_version: "0.1.0".to_owned(),
        node_version: "0.1.0".to_owned(),
        platform: "linux/x86_64".to_owned(),
        devices: vec![gpu],
        runtimes: Runtime::ALL.to_vec(),
        slots: 2,
    })?;
    let provider = Wallet::from_hex(&"22".repeat(32))?;
    let message = RegisterNode {
        provider: provider.address(),
        node_id: Bytes32(B256::repeat_byte(7)),
        relay_id: "relay-1".to_owned(),
        relay_url: "wss://relay.example/v1/provider/connect".to_owned(),
        session_id: "s-1".to_owned(),
        nonce: Bytes32(B256::repeat_byte(8)),
        timestamp: Timestamp::from_unix(1_700_000_000),
        metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
    };
    Ok((provider.sign(&message, &Domain::UNSETTLED)?.into(), metadata))
}

fn evidence_of(history: &[Recorded]) -> Result<Evidence, Box<dyn Error>> {
    let record = replay(history)?;
    let mut events = Vec::new();
    for (position, recorded) in history.iter().enumerate() {
        events.push(EvidenceEvent::new(recorded.clone(), replay(&history[..=position])?.status()));
    }
    let (registration, metadata) = registration()?;
    let of = registration.mutation.clone();
    let is_held = record.provider.is_some_and(|provider| provider.0 == of.provider);
    let session = SessionEvidence {
        session_id: of.session_id,
        provider: of.provider,
        node_id: of.node_id,
        relay_id: of.relay_id,
        generation: 1,
        connected_at: record.created_at,
        disconnected_at: None,
        reason: None,
        registration: Some(registration),
        metadata,
    };
    Ok(Evidence {
        format: FORMAT.to_owned(),
        relay_id: "relay-1".to_owned(),
        relay_version: "0.1.0".to_owned(),
        written_at: record.updated_at,
        task_id: record.id,
        domain: record.domain.into(),
        task: record.task.clone(),
        signature: record.signature,
        status: record.status(),
        settlement: record.settlement.as_str().to_owned(),
        events,
        sessions: if is_held { vec![session] } else { Vec::new() },
        chain: history.iter().filter_map(fact).collect(),
    })
}

fn fact(recorded: &Recorded) -> Option<ChainFact> {
    if let Event::Chain(fact) = &recorded.event { Some(*fact) } else { None }
}

fn write_json(corpus: &Path, target: &str, name: &str, value: &impl Serialize) -> Result<(), Box<dyn Error>> {
    write(corpus, target, &format!("ok-{name}.json"), &serde_json::to_vec(value)?)
}

fn write(corpus: &Path, target: &str, name: &str, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = corpus.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)?;
    Ok(())
}
