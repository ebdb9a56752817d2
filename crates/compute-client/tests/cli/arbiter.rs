//! The arbiter's tools, on a dispute that the chain told of.

use std::path::{Path, PathBuf};
use std::process::Output;

use rpc::evidence::{Evidence, EvidenceEvent, FORMAT};
use taskmarket::{
    Address, Amount, B256, Bytes32, ChainChange, ChainFact, ComputeProof, ContentHash, DisputeTask, Domain,
    Event, Message, Mutation, Recorded, ResolveDispute, Runtime, Signature, Signed, Task, TaskConfig,
    Timestamp, U256, apply, decide, keccak256, observe, publish,
};
use tempfile::TempDir;
use wallet::Wallet;

use crate::support::{cli, code, json, stderr, stdout};

const ESCROW: Domain = Domain { chain_id: 31337, verifying_contract: Address::repeat_byte(0x5e) };
const START: u64 = 1_800_000_000;
const ARBITER_KEY: &str = "5555555555555555555555555555555555555555555555555555555555555555";
const REASON: &str = "the answer is in the wrong language";

struct Case {
    folder: TempDir,
    evidence: Evidence,
}

impl Case {
    async fn cli(&self, arguments: &[&str]) -> Output {
        cli(self.folder.path(), arguments, &[], b"").await
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("case.json")
    }

    fn arbiter_key(&self) -> PathBuf {
        let path = self.folder.path().join("arbiter.key");
        write_private(&path, ARBITER_KEY);
        path
    }
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix(START + seconds)
}

fn hash(byte: u8) -> ContentHash {
    ContentHash(B256::repeat_byte(byte))
}

/// A disputed task, and what the chain said of it.
fn case() -> Case {
    case_with(true)
}

/// As [`case`], whose result the relay got or not.
fn case_with(result: bool) -> Case {
    let [requester, provider] = [(); 2].map(|()| Wallet::random());
    let arbiter = Wallet::from_hex(ARBITER_KEY).unwrap();
    let amount = |value: u64| Amount(U256::from(value));
    let task = Task {
        requester: requester.address(),
        model_cid: format!("artifact://{}", hash(1)).parse().unwrap(),
        model_hash: hash(1),
        input_cid: format!("artifact://{}", hash(2)).parse().unwrap(),
        input_hash: hash(2),
        config: TaskConfig {
            runtime: Runtime::Container,
            params: "{}".to_owned(),
            gpu_type: String::new(),
            gpu_count: 0,
            min_vram: 0,
            max_duration: 60,
            max_attempts: 3,
        },
        token: Address::ZERO,
        budget: amount(1001),
        provider_stake: amount(501),
        dispute_bond: amount(501),
        deadline: at(3600),
        dispute_window: 600,
        arbiter_window: 86_400,
        arbiter: arbiter.address(),
        salt: Bytes32::default(),
    };
    let signed = requester.sign(&task, &ESCROW).unwrap();
    let mut record = publish(at(0), &signed.clone().verify(&ESCROW).unwrap()).unwrap();
    let id = record.id;
    let mut events = vec![Recorded {
        version: 1,
        at: at(0),
        event: Event::Published { task: Box::new(signed), domain: ESCROW },
    }];
    let (of, attempt) = (provider.address(), 1);
    let proof = ComputeProof {
        task_id: id,
        provider: of,
        attempt,
        model_hash: hash(1),
        input_hash: hash(2),
        result_hash: hash(7),
        result_cid: format!("artifact://{}", hash(7)).parse().unwrap(),
        started_at: at(20),
        finished_at: at(30),
        gpu_name: "CPU".to_owned(),
    };
    let complaint = DisputeTask {
        task_id: id,
        provider: of,
        attempt,
        result_hash: hash(7),
        reason: REASON.to_owned(),
        evidence: String::new(),
        issued_at: at(50),
    };
    let proof = Mutation::Proof(verified(&provider, &proof));
    let complaint = Mutation::Dispute(verified(&requester, &complaint));
    let dispute = ChainChange::Disputed {
        provider: of,
        attempt,
        reason_hash: Bytes32(keccak256(REASON.as_bytes())),
        evidence_hash: Bytes32(keccak256(b"")),
        resolve_until: at(60 + 86_400),
    };
    let steps: [(u64, Result<ChainChange, &Mutation>); 6] = [
        (5, Ok(ChainChange::Funded)),
        (10, Ok(ChainChange::Accepted { provider: of, attempt, lease_until: at(500) })),
        (35, Err(&proof)),
        (40, Ok(ChainChange::Proven { provider: of, attempt, result_hash: hash(7), dispute_until: at(640) })),
        (50, Err(&complaint)),
        (60, Ok(dispute)),
    ];
    let mut chain = Vec::new();
    for (seconds, step) in steps {
        if step.is_err_and(|said| matches!(said, Mutation::Proof(_)) && !result) {
            continue;
        }
        let event = match step {
            Ok(change) => {
                let fact = ChainFact {
                    tx: Bytes32(B256::from(U256::from(seconds))),
                    log_index: 0,
                    block: seconds,
                    block_hash: Bytes32::default(),
                    block_time: at(seconds),
                    change,
                };
                chain.push(fact);
                observe(&record, fact).unwrap().unwrap()
            }
            Err(mutation) => decide(&record, at(seconds), mutation).unwrap().unwrap(),
        };
        apply(&mut record, at(seconds), &event);
        events.push(Recorded { version: record.version, at: at(seconds), event });
    }
    let mut so_far = None;
    let shown = events.into_iter().map(|recorded| {
        let record = so_far.get_or_insert_with(|| {
            let Event::Published { task, domain } = &recorded.event else { panic!("no beginning") };
            publish(recorded.at, &(**task).clone().verify(domain).unwrap()).unwrap()
        });
        if recorded.version > 1 {
            apply(record, recorded.at, &recorded.event);
        }
        EvidenceEvent::new(recorded, record.status())
    });
    let evidence = Evidence {
        format: FORMAT.to_owned(),
        relay_id: "hz-1".to_owned(),
        relay_version: "0".to_owned(),
        written_at: at(70),
        task_id: id,
        domain: ESCROW.into(),
        status: record.status(),
        settlement: record.settlement.as_str().to_owned(),
        task: record.task.clone(),
        signature: record.signature,
        events: shown.collect(),
        sessions: Vec::new(),
        chain,
    };
    let folder = TempDir::new().unwrap();
    let case = Case { folder, evidence };
    std::fs::write(case.file(), serde_json::to_vec(&case.evidence).unwrap()).unwrap();
    case
}

fn verified<M: Message>(who: &Wallet, message: &M) -> taskmarket::Verified<M> {
    who.sign(message, &ESCROW).unwrap().verify(&ESCROW).unwrap()
}

#[tokio::test]
async fn disputes_are_listed_and_shown_from_evidence_alone() {
    let case = case();
    let folder = case.folder.path().to_str().unwrap().to_owned();
    let out = case.cli(&["arbiter", "list", &folder]).await;
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert!(stdout(&out).contains(REASON) && stdout(&out).contains(&case.evidence.task_id.to_string()));

    let file = case.file();
    let out = case.cli(&["arbiter", "show", file.to_str().unwrap()]).await;
    let shown = stdout(&out);
    for part in ["money disputed", REASON, "at stake   2003", "5000 bps: provider 1001, requester 1002"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let out = case.cli(&["verify", file.to_str().unwrap()]).await;
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    assert!(stdout(&out).contains("the budget was paid in"), "{}", stdout(&out));
}

#[tokio::test]
async fn a_dispute_of_what_never_came_is_decided_too() {
    let case = case_with(false);
    let (folder, file, key) = (case.folder.path().to_owned(), case.file(), case.arbiter_key());
    let (file, key) = (file.to_str().unwrap(), key.to_str().unwrap());
    let out = case.cli(&["arbiter", "list", folder.to_str().unwrap()]).await;
    assert!(stdout(&out).contains(REASON), "{}{}", stdout(&out), stderr(&out));
    let out = case.cli(&["arbiter", "show", file]).await;
    assert!(stdout(&out).contains("which the relay never got"), "{}{}", stdout(&out), stderr(&out));
    let resolve = ["--json", "--key-file", key, "arbiter", "resolve", file, "--provider-bps", "0", "--print"];
    let out = case.cli(&resolve).await;
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    let told = json(&out);
    assert_eq!(told["mutation"]["attempt"], 1);
    assert!(told["transaction"]["data"].as_str().unwrap().len() > 500);
}

#[tokio::test]
async fn a_verdict_is_the_arbiters_alone_and_carries_its_transaction() {
    let case = case();
    let (file, key) = (case.file(), case.arbiter_key());
    let (file, key) = (file.to_str().unwrap(), key.to_str().unwrap());
    let resolve = ["--json", "--key-file", key, "arbiter", "resolve", file, "--provider-bps", "2500"];
    let out = case.cli(&resolve).await;
    assert!(code(&out) == 2 && stderr(&out).contains("--print"), "{}", stderr(&out));
    let out = case.cli(&[&resolve[..], &["--print"]].concat()).await;
    assert_eq!(code(&out), 0, "{}", stderr(&out));
    let told = json(&out);
    let message: ResolveDispute = serde_json::from_value(told["mutation"].clone()).unwrap();
    let signature: Signature = serde_json::from_value(told["signature"].clone()).unwrap();
    assert_eq!((message.provider_bps, message.attempt), (2500, 1));
    let signed = Signed { message, signature }.verify(&ESCROW).unwrap();
    assert_eq!(signed.signer(), case.evidence.task.arbiter);
    assert_eq!(told["transaction"]["to"], ESCROW.verifying_contract.to_string().to_lowercase());
    assert!(told["transaction"]["data"].as_str().unwrap().len() > 500);

    let other = case.folder.path().join("other.key");
    write_private(&other, &"44".repeat(32));
    let key = other.to_str().unwrap();
    let out =
        case.cli(&["--key-file", key, "arbiter", "resolve", file, "--provider-bps", "0", "--print"]).await;
    assert_eq!(code(&out), 3, "{}", stderr(&out));
    let out = case.cli(&["arbiter", "resolve", file, "--provider-bps", "10001"]).await;
    assert_eq!(code(&out), 2);
}

#[tokio::test]
async fn evidence_that_the_contract_could_not_have_led_to_is_refused() {
    let case = case();
    let mut forged = serde_json::to_value(&case.evidence).unwrap();
    // The proof came a second after the lease.
    for place in ["/events/4/event", "/chain/2"] {
        let fact = forged.pointer_mut(place).unwrap();
        fact["block_time"] = serde_json::to_value(at(500)).unwrap();
    }
    std::fs::write(case.file(), forged.to_string()).unwrap();
    let file = case.file();
    for verb in [vec!["verify"], vec!["arbiter", "show"]] {
        let arguments = [verb, vec![file.to_str().unwrap()]].concat();
        let out = case.cli(&arguments).await;
        assert_eq!(code(&out), 5, "{}", stderr(&out));
    }
}
