//! `verify`: what of a task's history is proven, and whose word each statement is. Nothing is taken on the relay's word that a
//! signature can prove. A file with evidence is checked offline, by the same rules.

mod inference;

use std::path::{Path, PathBuf};

use artifact::Digest;
use rpc::evidence::{self, Evidence, EvidenceEvent};
use rpc::tasks::{Entry, TaskHistory, TaskView};
use serde_json::json;
use taskmarket::{Recorded, TaskId, TaskRecord, Word, apply, replay};
use url::Url;

use crate::cli::Global;
use crate::content::hash_of;
use crate::failure::{Context as _, Failure, Outcome};
use crate::follow::{describe, has_result, whose};
use crate::node_check;
use crate::proof;
use crate::rerun::{Agreement, rerun};
use crate::ui::{Ui, clean};

/// The largest file with a history that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What to verify.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    zorai-compute verify 0xTASK\n  \
    zorai-compute verify --rerun 0xTASK                       (run it again here: wasm, embed)\n  \
    zorai-compute events 0xTASK --json > history.json\n  \
    zorai-compute verify history.json --result result.bin     (offline)\n  \
    zorai-compute verify evidence.json                        (offline)\n  \
    zorai-compute verify evidence.json --rpc-url https://…    (the chain's part, with a node)\n  \
    zorai-compute verify --receipt REQUEST_ID                 (of a model's answer)\n  \
    zorai-compute verify receipt.json --request request.json --response response.bin    (offline)\n\n\
    A model's answers are saved to the byte, with their receipts, by chat --save-exchange DIR.\n\
    Evidence is the answer of GET /v1/tasks/0xTASK/evidence at the relay.")]
pub(crate) struct Args {
    /// The task: 0x and 64 hex digits; or a file with evidence, with a history as `events --json` prints it, or with a receipt
    #[arg(value_name = "TASK_ID|FILE", required_unless_present = "receipt")]
    subject: Option<String>,
    #[command(flatten)]
    inference: inference::ReceiptArgs,
    /// Check this file against the proof, in place of the result at the relay
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// Run the task again on this machine, and compare: wasm gives the same bytes everywhere, embed nearly the same numbers
    #[arg(long, conflicts_with = "result")]
    rerun: bool,
    /// Find what evidence says of the chain on the chain itself, at this JSON-RPC endpoint; repeat it for several
    #[arg(long = "rpc-url", value_name = "URL", conflicts_with = "rerun")]
    rpc_urls: Vec<Url>,
}

/// Verifies a task.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    if inference::run(global, args.subject.as_deref(), &args.inference, ui).await? {
        return Ok(());
    }
    let subject = args.subject.as_deref().unwrap_or_default();
    let online = subject.parse::<TaskId>();
    if args.rerun && online.is_err() {
        return Err(Failure::usage("--rerun takes a task's id: model and input are fetched from its relay"));
    }
    let history = match &online {
        Ok(id) => global.reading_relay(ui).await?.history(*id).await?,
        Err(error) => match read(Path::new(subject), error)? {
            Document::History(history) => *history,
            Document::Evidence(evidence) => {
                return check_evidence(global, &evidence, args, ui).await;
            }
        },
    };
    if !args.rpc_urls.is_empty() {
        return Err(Failure::usage(
            "--rpc-url checks evidence: give a file with it, in place of a task's id",
        ));
    }
    let asked = online.as_ref().copied().unwrap_or(history.task_id);
    let (record, recorded) = replayed(&history, asked)?;
    let mut agreement = None;
    let checked = match (&args.result, &online) {
        (Some(file), _) => Some(check_file(&record, file).await?),
        (None, Ok(id)) => {
            let relay = global.reading_relay(ui).await?;
            let view = relay.task(*id).await?;
            agree(&record, &view)?;
            if has_result(record.status()) {
                let checked = proof::fetch(&relay, &view, *id, ui).await?;
                proof_is_of(&record, &checked.proof)?;
                if args.rerun {
                    agreement = Some(Box::pin(rerun(&relay, &record.task, &checked, ui)).await?);
                }
                Some(())
            } else if args.rerun {
                return Err(Failure::failed(format_args!(
                    "the task is {}: it has no result to compare with",
                    record.status()
                )));
            } else {
                None
            }
        }
        (None, Err(_)) => None,
    };
    tell(&record, &recorded, checked.is_some(), agreement.as_ref(), ui)
}

/// What a file holds.
enum Document {
    History(Box<TaskHistory>),
    Evidence(Box<Evidence>),
}

/// Checks a file with evidence, and says what it states and whose word each statement is.
async fn check_evidence(global: &Global, evidence: &Evidence, args: &Args, ui: &Ui) -> Outcome {
    let result = args.result.as_deref();
    let report = evidence::verify(evidence)
        .map_err(|error| Failure::unverified(format_args!("the evidence: {error}")))?;
    if let Some(file) = result {
        let recorded: Vec<Recorded> = evidence.events.iter().map(EvidenceEvent::recorded).collect();
        let record = replay(&recorded).map_err(Failure::unverified)?;
        check_file(&record, file).await?;
    }
    let node = match args.rpc_urls.as_slice() {
        [] => None,
        urls => Some(node_check::check(evidence, urls, global.ca_file.as_deref()).await?),
    };
    if ui.json {
        let mut told = json!({
            "task_id": report.task_id,
            "verified": true,
            "status": report.status,
            "settlement": evidence.settlement,
            "result_checked": result.is_some(),
            "statements": report.statements,
        });
        if let Some(node) = &node {
            told["chain"] = json!(node);
        }
        return ui.print_json(&told);
    }
    for statement in &report.statements {
        let whose = match (statement.word, statement.signer) {
            (Word::Signature, Some(signer)) => format!("signed by {signer}"),
            (Word::Signature, None) => "signed".to_owned(),
            (Word::Time, _) => "by the dates that were signed, and the relay's clock".to_owned(),
            (Word::Relay, _) => "the relay's word alone".to_owned(),
            (Word::Chain, _) if node.is_some() => "the chain's word, found there".to_owned(),
            (Word::Chain, _) => "the chain's word, by the relay's account".to_owned(),
        };
        ui.print(format_args!("{}  {}  [{whose}]", statement.at, clean(&statement.text)))?;
    }
    let bytes = if result.is_some() { "; these are the bytes of its result" } else { "" };
    if let Some(node) = &node {
        ui.print(format_args!(
            "the chain has all {} that the evidence says of it; the money is {} now",
            node.facts, node.settlement_now
        ))?;
    }
    ui.print(format_args!(
        "every signature and every step holds: task {} is {}{bytes}",
        report.task_id, report.status
    ))
}

fn read(path: &Path, not_an_id: &taskmarket::ParseError) -> Outcome<Document> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        Failure::usage(format_args!("{}: {error}", path.display())).hint(format_args!(
            "give a task id ({not_an_id}) or a file with evidence, a history or a receipt"
        ))
    })?;
    if metadata.is_dir() {
        return Err(Failure::usage(format_args!("{} is a folder", path.display()))
            .hint("name one file in it: evidence, a history or a receipt")
            .hint("of an exchange that chat --save-exchange kept: verify DIR/ID.receipt.json --request DIR/ID.request.json --response DIR/ID.response.bin")
            .hint("of a folder of disputes: zorai-compute arbiter list DIR"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(Failure::usage(format_args!("{} is too large for a history", path.display())));
    }
    let bytes = std::fs::read(path).or_usage(path.display())?;
    /// What tells evidence from a history.
    #[derive(serde::Deserialize)]
    struct Kind {
        format: Option<String>,
    }
    let is_evidence = serde_json::from_slice::<Kind>(&bytes).is_ok_and(|kind| kind.format.is_some());
    if is_evidence {
        // It says that it is evidence: what of it cannot be read does not hold.
        return serde_json::from_slice(&bytes)
            .map(|evidence| Document::Evidence(Box::new(evidence)))
            .map_err(|error| {
                Failure::unverified(format_args!("{} holds no sound evidence: {error}", path.display()))
            });
    }
    serde_json::from_slice(&bytes).map(|history| Document::History(Box::new(history))).map_err(|error| {
        Failure::usage(format_args!("{} holds no evidence and no history: {error}", path.display()))
            .hint("write one: zorai-compute events TASK_ID --json > FILE")
    })
}

/// Replays the signed history from its text alone.
fn replayed(history: &TaskHistory, asked: TaskId) -> Outcome<(TaskRecord, Vec<Recorded>)> {
    let recorded: Vec<Recorded> = history
        .events
        .iter()
        .filter_map(|event| match &event.entry {
            Entry::Recorded { recorded, .. } => Some(Recorded::clone(recorded)),
            Entry::Progress { .. } => None,
        })
        .collect();
    let record =
        replay(&recorded).map_err(|error| Failure::unverified(format_args!("the history: {error}")))?;
    if record.id != asked {
        return Err(Failure::unverified(format_args!(
            "the history is of task {}, not of {asked}",
            record.id
        )));
    }
    Ok((record, recorded))
}

/// The relay's view must be what its history comes to. Time may have moved the task on in between, never back.
fn agree(record: &TaskRecord, view: &TaskView) -> Outcome {
    proof::check_task(view, record.id)?;
    let same = view.attempt == record.attempts && view.status == record.status();
    if same || view.updated_at > record.updated_at {
        return Ok(());
    }
    Err(Failure::unverified(format_args!(
        "the relay says {} at attempt {}, its history comes to {} at attempt {}",
        view.status,
        view.attempt,
        record.status(),
        record.attempts
    )))
}

fn proof_is_of(record: &TaskRecord, proof: &taskmarket::ComputeProof) -> Outcome {
    match record.submission() {
        Some(submission) if submission.proof.message == *proof => Ok(()),
        Some(_) | None => Err(Failure::unverified("the relay shows another proof than its history")),
    }
}

async fn check_file(record: &TaskRecord, file: &Path) -> Outcome {
    let (digest, _) = Digest::of_file(file).await.or_usage(file.display())?;
    let Some(submission) = record.submission() else {
        return Err(Failure::failed(format_args!("the task is {}: it has no result", record.status())));
    };
    proof::check_result(&submission.proof.message, hash_of(digest))
}

fn tell(
    record: &TaskRecord,
    recorded: &[Recorded],
    result_checked: bool,
    agreement: Option<&Agreement>,
    ui: &Ui,
) -> Outcome {
    let words = |word: Word| recorded.iter().filter(|entry| entry.event.word() == word).count();
    let proof = record.submission().map(|submission| &submission.proof.message);
    if ui.json {
        let statements: Vec<_> = recorded
            .iter()
            .map(|entry| json!({ "version": entry.version, "at": entry.at, "type": entry.event.name(), "word": entry.event.word() }))
            .collect();
        let mut told = json!({
            "task_id": record.id,
            "verified": true,
            "status": record.status(),
            "provider": proof.map(|proof| proof.provider.to_string()),
            "result_hash": proof.map(|proof| proof.result_hash),
            "result_checked": result_checked,
            "statements": statements,
        });
        if let Some(agreement) = agreement {
            told["rerun"] = json!(agreement);
        }
        return ui.print_json(&told);
    }
    // All of it holds, so folding it again needs no checks.
    let mut so_far = replay(&recorded[..1]).map_err(Failure::unverified)?;
    for entry in recorded {
        if entry.version > 1 {
            apply(&mut so_far, entry.at, &entry.event);
        }
        ui.print(format_args!("{}  {}  [{}]", entry.at, describe(entry, so_far.status()), whose(entry)))?;
    }
    ui.print(format_args!(
        "proven: the task is {} ({} signed, {} by time, {} on the relay's word, {} by the chain)",
        record.status(),
        words(Word::Signature),
        words(Word::Time),
        words(Word::Relay),
        words(Word::Chain)
    ))?;
    match proof {
        Some(proof) if result_checked => ui.print(format_args!(
            "proven: {} signed for the result {}, and these are its bytes",
            proof.provider, proof.result_hash
        )),
        Some(proof) => ui.print(format_args!(
            "proven: {} signed for the result {}; its bytes were not checked",
            proof.provider, proof.result_hash
        )),
        None => Ok(()),
    }?;
    match agreement {
        Some(Agreement { largest_difference: Some(difference), .. }) => {
            ui.print(format_args!("proven: run again, the task gives the same embeddings, to {difference:e}"))
        }
        Some(Agreement { result_hash, .. }) => {
            ui.print(format_args!("proven: run again, the task gives the same result, {result_hash}"))
        }
        None => Ok(()),
    }
}
