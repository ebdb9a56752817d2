//! The arbiter's tools, on a dispute that the chain told of.

use std::path::{Path, PathBuf};
use std::process::Output;

use rpc::evidence::{Evidence, EvidenceEvent, FORMAT};
use taskmarket::{
    Address, Amount, B256, Bytes32, ChainChange, ChainFact, ComputeProof, ContentHash, DisputeTask, Domain,
    Event, Message, Mutation, Recorded, ResolveDispute, Runtime, Signature, Signed, Task, TaskConfig,
    TaskRecord, Timestamp, U256, apply, decide, keccak256, observe, publish,
};
use tempfile::TempDir;
use wallet::Wallet;

use crate::lies::program;
use crate::support::{API_KEY, RESULT, Relay, Script, cli, code, hash_of, json, said, stderr, stdout};

const ESCROW: Domain = Domain { chain_id: 31337, verifying_contract: Address::repeat_byte(0x5e) };
const START: u64 = 1_800_000_000;
const ARBITER_KEY: &str = "5555555555555555555555555555555555555555555555555555555555555555";
const REASON: &str = "the answer is in the wrong language";

struct Case {
    folder: TempDir,
    evidence: Evidence,
    record: TaskRecord,
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
    case_of(Some(hash(7)).filter(|_| result), hash(7), Runtime::Container)
}

/// As [`case`]: the result that the relay got, if it got one, and the one whose proof is on the chain.
fn case_of(told: Option<ContentHash>, proven: ContentHash, runtime: Runtime) -> Case {
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
            runtime,
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
        result_hash: told.unwrap_or(proven),
        result_cid: format!("artifact://{}", told.unwrap_or(proven)).parse().unwrap(),
        started_at: at(20),
        finished_at: at(30),
        gpu_name: "CPU".to_owned(),
    };
    let complaint = DisputeTask {
        task_id: id,
        provider: of,
        attempt,
        result_hash: proven,
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
        (40, Ok(ChainChange::Proven { provider: of, attempt, result_hash: proven, dispute_until: at(640) })),
        (50, Err(&complaint)),
        (60, Ok(dispute)),
    ];
    let mut chain = Vec::new();
    for (seconds, step) in steps {
        // Of two results, the relay takes no complaint about the one that it has not got.
        let is_left_out = |said: &Mutation| match told {
            None => matches!(said, Mutation::Proof(_)),
            Some(told) => matches!(said, Mutation::Dispute(_)) && told != proven,
        };
        if step.is_err_and(is_left_out) {
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
    let case = Case { folder, evidence, record };
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

#[tokio::test]
async fn a_wasm_dispute_is_run_again_and_its_verdict_proposed() {
    let result = std::str::from_utf8(RESULT).unwrap();
    for (writes, bps, why) in [
        (Some(result), 10_000, "run again, the task gives the same result"),
        (Some("something else"), 0, "run again, the task gives another result"),
        (None, 0, "run again, the task fails: trapped"),
    ] {
        let relay = Relay::start(Script::Honest).await;
        let model = relay.path("task.wasm");
        match writes {
            Some(writes) => assert_eq!(program(&relay, "task.wasm", writes), model),
            None => {
                let module = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;
                std::fs::write(&model, wat::parse_str(module).unwrap()).unwrap();
            }
        }
        let input = relay.path("input.txt");
        let arbiter = Wallet::from_hex(ARBITER_KEY).unwrap().address().to_string();
        let out = relay.cli(&["run", "--model", &model, "--input", &input, "--arbiter", &arbiter]).await;
        assert_eq!(code(&out), 0, "{}", said(&out));
        let (id, file) = (stdout(&out).trim().to_owned(), relay.path("case.json"));
        let rerun = ["arbiter", "rerun", &file];
        std::fs::write(&file, relay.evidence()).unwrap();
        let out = relay.cli(&rerun).await;
        assert!(code(&out) == 1 && stderr(&out).contains("nothing to decide"), "{}", said(&out));

        let out = relay.cli(&["dispute", &id, "--reason", REASON]).await;
        assert_eq!(code(&out), 0, "{}", said(&out));
        std::fs::write(&file, relay.evidence()).unwrap();
        let out = relay.cli(&rerun).await;
        assert_eq!(code(&out), 0, "{}", said(&out));
        assert!(stdout(&out).starts_with(why), "{}", said(&out));
        assert!(stdout(&out).ends_with(&format!("proposed: --provider-bps {bps}\n")), "{}", said(&out));
        let told = json(&relay.cli(&[&["--json"], &rerun[..]].concat()).await);
        assert_eq!(
            (&told["provider_bps"], &told["result_hash"]),
            (&bps.into(), &serde_json::json!(hash_of(RESULT)))
        );
    }
}

#[tokio::test]
async fn what_running_again_cannot_decide_gets_no_verdict() {
    // Containers may give other bytes on every machine.
    let relay = Relay::start_with(Script::Honest, ESCROW, Wallet::random()).await;
    let rerun = async |case: &Case| {
        relay.hold(case.record.clone());
        let file = case.file();
        cli(
            case.folder.path(),
            &["arbiter", "rerun", file.to_str().unwrap()],
            &[("ZORAI_RELAY", &relay.url), ("ZORAI_AI_API_KEY", API_KEY)],
            b"",
        )
        .await
    };
    let out = rerun(&case()).await;
    assert!(code(&out) == 2 && stderr(&out).contains("the runtime container"), "{}", said(&out));
    // The relay never got a result.
    let out = rerun(&case_of(None, hash(7), Runtime::Wasm)).await;
    assert!(code(&out) != 0 && stdout(&out).is_empty(), "{}", said(&out));
    // It got one, and the chain has the proof of another: what it got says nothing of that.
    let out = rerun(&case_of(Some(hash_of(RESULT)), hash(9), Runtime::Wasm)).await;
    assert!(code(&out) != 0 && stdout(&out).is_empty(), "{}", said(&out));
}
