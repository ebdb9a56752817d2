//! `run`: publishes a task, and with `--poll` waits for its checked result.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::value_parser;
use rpc::tasks::PublishTask;
use serde_json::json;
use taskmarket::{
    Address, Amount, B256, Bytes32, ContentHash, Domain, MAX_ATTEMPTS, MAX_DURATION_SECS, MAX_GPU_COUNT,
    MAX_WINDOW_SECS, Message as _, ParseError, Runtime, Signed, Status, Task, TaskConfig, TaskId, Timestamp,
};
use wallet::Wallet;

use crate::cli::{Global, parse_address};
use crate::commands::approve::approve;
use crate::commands::params;
use crate::content::{Content, Named};
use crate::failure::{Exit, Failure, Outcome};
use crate::follow::{Follower, now};
use crate::key::{self, IfMissing};
use crate::proof::{self, Checked, Receipt};
use crate::relay::Relay;
use crate::rerun::{self, rerun};
use crate::ui::{Style, Ui, span};

/// How long after a task's deadline the relay may take to say so.
const DEADLINE_MARGIN_SECS: u64 = 60;

/// What to run, where, and for how much.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
    A WebAssembly program over a local file; wait, check, approve, and write the result:\n    \
    zorai-compute run --model program.wasm --input data.txt --poll --output result.txt\n\n  \
    Embeddings on an A100 with 40 GiB, without waiting:\n    \
    zorai-compute run --model ./all-MiniLM-L6-v2 --input text.txt --gpu-type A100 --min-vram 40960\n\n  \
    References instead of uploads:\n    \
    zorai-compute run --runtime wasm --model https://models.example/program.wasm --model-hash 0123...abcd \\\n      \
    --input https://signed.example/input.json --input-hash 0123...abcd --budget 10000000000000000 --poll\n\n  \
    See what would be signed, without sending anything:\n    \
    zorai-compute run --model program.wasm --input data.txt --dry-run\n\n\
    Local files are hashed and uploaded to the relay. The task's id goes to standard output; with --poll and no --output FILE\n\
    the result goes there instead. Providers see what they run: do not send them secrets."
)]
pub(crate) struct Args {
    /// The model or program: a reference (https://, artifact://, file://), a local file or folder, or `-` for standard input
    #[arg(long, value_name = "REF|PATH")]
    model: String,
    /// The model's SHA-256 (of a folder, the digest of its list of files); local content is checked against it
    #[arg(long, value_name = "SHA256")]
    model_hash: Option<ContentHash>,
    /// The input: a reference, a local file, or `-` for standard input
    #[arg(long, value_name = "REF|PATH")]
    input: String,
    /// The input's SHA-256; a local input is checked against it
    #[arg(long, value_name = "SHA256")]
    input_hash: Option<ContentHash>,
    /// What executes the task: embed, wasm, container or openai [default: inferred from the model where that is certain]
    #[arg(long)]
    runtime: Option<Runtime>,
    #[command(flatten)]
    program: params::Program,

    /// Words that the GPU's name must contain, such as A100
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        help_heading = "Machine"
    )]
    gpu_type: String,
    /// GPUs [default: 1 if a GPU is asked for, else 0]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(..=i64::from(MAX_GPU_COUNT)), help_heading = "Machine")]
    gpu_count: Option<u32>,
    /// Memory of each GPU, in MiB
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Machine"
    )]
    min_vram: u64,

    /// What you offer, in the token's smallest unit
    #[arg(long, value_name = "AMOUNT", default_value = "0", allow_hyphen_values = true, value_parser = parse_amount, help_heading = "Terms")]
    budget: Amount,
    /// How long one attempt may run, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = value_parser!(u64).range(1..=MAX_DURATION_SECS), help_heading = "Terms")]
    max_duration: u64,
    /// How many attempts are made before the task counts as failed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=i64::from(MAX_ATTEMPTS)), help_heading = "Terms")]
    max_attempts: u32,
    /// When the offer ends: a duration (90s, 15m, 1h, 2d) or RFC 3339
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = Deadline::parse, help_heading = "Terms")]
    deadline: Deadline,
    /// How long you may dispute a result, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400, value_parser = value_parser!(u64).range(..=MAX_WINDOW_SECS), help_heading = "Terms")]
    dispute_window: u64,
    /// How long an arbiter has to resolve a dispute, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 604_800, value_parser = value_parser!(u64).range(..=MAX_WINDOW_SECS), help_heading = "Terms")]
    arbiter_window: u64,
    /// Who resolves disputes [default: nobody]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address, help_heading = "Terms")]
    arbiter: Option<Address>,
    /// Tells apart tasks that are otherwise alike; the same salt and terms give the same task [default: random]
    #[arg(long, value_name = "0xHEX", help_heading = "Terms")]
    salt: Option<Bytes32>,

    /// Wait for the result, check it against its proof, and write it
    #[arg(long)]
    poll: bool,
    /// Write the result to this file; `-` is standard output
    #[arg(long, short, value_name = "FILE", requires = "poll")]
    output: Option<PathBuf>,
    /// How the result is checked before it is approved
    #[arg(long, value_enum, default_value_t = Verify::Proof, requires = "poll")]
    verify: Verify,
    /// Whether to approve a result that verifies
    #[arg(long, value_enum, default_value_t = Approve::Auto)]
    approve: Approve,
    /// Print the message that would be signed and its digest; send nothing
    #[arg(long, conflicts_with = "poll")]
    dry_run: bool,
}

/// How a result is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Verify {
    /// It is what the provider signed for.
    Proof,
    /// Besides, running the task again on this machine gives the same (wasm; embed within rounding).
    Rerun,
}

/// What is done about a task's result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    /// How it is checked.
    pub(crate) verify: Verify,
    /// Whether it is approved then.
    pub(crate) approve: Approve,
}

/// Whether a result that verifies is approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Approve {
    /// Approve it.
    Auto,
    /// Ask on the terminal.
    Ask,
    /// Leave it; the dispute window decides.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deadline {
    In(u64),
    At(Timestamp),
}

impl Deadline {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no time; write a number and s, m, h or d, such as 1h, or RFC 3339 in whole seconds"
            )
        };
        let unit = match text.chars().next_back() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some(_) | None => return text.parse().map(Self::At).map_err(|_| wrong()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        number.checked_mul(unit).map(Self::In).ok_or_else(wrong)
    }

    fn resolve(self) -> Timestamp {
        match self {
            Self::In(seconds) => now().plus(seconds),
            Self::At(time) => time,
        }
    }
}

/// Runs a task.
pub(crate) async fn run(global: &Global, args: Args, ui: &Ui) -> Outcome {
    check_usage(&args, ui)?;
    // Asked for first: nothing is hashed for a relay that is not named.
    let relay = if args.dry_run { None } else { Some(global.relay(ui)?) };
    let (task, model, input) = prepare(&args, relay.as_ref(), ui).await?;
    // A key is made for a task that passed all that can be checked here.
    let wallet = key::load(global, ui, IfMissing::Make).await?;
    let task = Task { requester: wallet.address(), ..task };
    check(&task, &wallet)?;
    let Some(relay) = relay else { return show(&task, ui) };
    let started = Instant::now();
    let id = publish(&relay, &wallet, &task, &[&model, &input], ui).await?;
    if !args.poll {
        ui.say(format_args!("follow it: zorai-compute events {id} --follow, or zorai-compute status {id}"));
        let window = span(Duration::from_secs(task.dispute_window));
        ui.say(format_args!("its result may be disputed for {window} after it is submitted"));
        return if ui.json {
            ui.print_json(&json!({ "task_id": id, "status": "open" }))
        } else {
            ui.print(id)
        };
    }
    let output = args.output.as_deref().filter(|path| path.as_os_str() != "-");
    if output.is_some() && !ui.json {
        ui.print(id)?;
    } else {
        ui.say(format_args!("task {id}"));
    }
    let verdict = Verdict { verify: args.verify, approve: args.approve };
    let polled = poll(&relay, &wallet, &task, id, started, verdict, ui);
    let (checked, status) = tokio::select! {
        polled = Box::pin(polled) => polled?,
        _ = tokio::signal::ctrl_c() => return Err(interrupted(id)),
    };
    if output.is_some() || !ui.json {
        checked.result.write(output).await?;
    }
    let receipt = Receipt::new(&checked, status, started.elapsed(), output);
    if ui.json {
        if output.is_none() {
            ui.say(format_args!(
                "the result was checked, not written: give --output FILE, or zorai-compute result {id} --output FILE"
            ));
        }
        return ui.print_json(&receipt);
    }
    receipt.say(ui);
    Ok(())
}

/// Looks at what the flags name, then reads and hashes it, and gives the task, of nobody yet.
async fn prepare(args: &Args, relay: Option<&Relay>, ui: &Ui) -> Outcome<(Task, Content, Content)> {
    let model = Named::look("--model", &args.model).await?;
    let input = Named::look("--input", &args.input).await?;
    let runtime = args.runtime.or(model.runtime()).ok_or_else(|| {
        let all: Vec<_> = Runtime::ALL.iter().map(|runtime| runtime.as_str()).collect();
        Failure::usage("what executes this model is not certain")
            .hint(format_args!("name the runtime: --runtime {}", all.join(" or --runtime ")))
    })?;
    model.check_model(runtime)?;
    input.check_input(runtime)?;
    if args.verify == Verify::Rerun {
        rerun::check_runtime(runtime)?;
    }
    let params = args.program.of(runtime)?;
    for named in [&model, &input] {
        named.warn(ui);
    }
    let limit = match relay {
        Some(relay) => relay.limits().await?.max_artifact_bytes,
        None => u64::MAX,
    };
    let model = model.content(Some(runtime), limit).await?;
    let input = input.content(None, limit).await?;
    let nobody = Wallet::random();
    let task = task_of(args, runtime, params, nobody.address(), &model, &input)?;
    check(&task, &nobody)?;
    Ok((task, model, input))
}

/// Uploads what the relay has not got, signs the task and publishes it.
pub(crate) async fn publish(
    relay: &Relay,
    wallet: &Wallet,
    task: &Task,
    contents: &[&Content],
    ui: &Ui,
) -> Outcome<TaskId> {
    Content::upload(contents, relay, ui).await?;
    let Signed { message, signature } = wallet.sign(task, &Domain::UNSETTLED).map_err(Failure::failed)?;
    let id = message.id(&Domain::UNSETTLED);
    let verifying_contract = Domain::UNSETTLED.verifying_contract;
    let body = PublishTask { task: message, signature, verifying_contract, callback_url: None };
    let view = relay.publish(&body).await?;
    if view.task_id != id {
        return Err(Failure::unverified(format_args!(
            "the relay calls the task {}, but its digest is {id}",
            view.task_id
        )));
    }
    Ok(id)
}

/// Waits for a task's result, checks it, and approves it as told.
pub(crate) async fn poll(
    relay: &Relay,
    wallet: &Wallet,
    task: &Task,
    id: TaskId,
    started: Instant,
    verdict: Verdict,
    ui: &Ui,
) -> Outcome<(Checked, Status)> {
    let patience = Duration::from_secs(task.deadline.since(now()) + DEADLINE_MARGIN_SECS);
    let followed = Box::pin(Follower::new(relay, ui, id, started).until_result());
    let status = tokio::time::timeout(patience, followed).await.map_err(|_| {
        Failure::failed("the task's deadline has passed, and the relay says nothing of it")
            .hint(format_args!("ask again: zorai-compute status {id}"))
    })??;
    let view = relay.task(id).await?;
    let disputable = |failure: Failure| {
        if failure.exit() == Exit::Unverified && status == Status::Submitted {
            failure
                .hint(format_args!("it was not approved; object: zorai-compute dispute {id} --reason TEXT"))
        } else {
            failure
        }
    };
    let checked = proof::fetch(relay, &view, id, ui).await.map_err(disputable)?;
    ui.say(format_args!(
        "{} the result is what {} signed for",
        ui.paint(Style::Good, "verified:"),
        checked.proof.provider
    ));
    if verdict.verify == Verify::Rerun {
        Box::pin(rerun(relay, task, &checked, ui)).await.map_err(disputable)?;
        ui.say(format_args!("{} running it again gives the same", ui.paint(Style::Good, "verified:")));
    }
    if view.status != Status::Submitted || !wanted(verdict.approve, ui)? {
        return Ok((checked, view.status));
    }
    let view = approve(relay, wallet, &checked).await?;
    ui.say(format_args!("{:>7} Completed: you approved", crate::ui::span(started.elapsed())));
    Ok((checked, view.status))
}

fn wanted(approval: Approve, ui: &Ui) -> Outcome<bool> {
    match approval {
        Approve::Auto => Ok(true),
        Approve::Never => Ok(false),
        Approve::Ask => {
            ui.say("approve it? [y/N]");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(Failure::failed)?;
            Ok(matches!(line.trim(), "y" | "Y" | "yes"))
        }
    }
}

fn check_usage(args: &Args, ui: &Ui) -> Outcome {
    if args.model == "-" && args.input == "-" {
        return Err(Failure::usage("standard input cannot be both --model and --input"));
    }
    if ui.json && args.output.as_ref().is_some_and(|path| path.as_os_str() == "-") {
        return Err(Failure::usage("--json and --output - would share standard output")
            .hint("write the result to a file: --output FILE"));
    }
    if args.approve == Approve::Ask && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("--approve ask needs a terminal to ask on"));
    }
    Ok(())
}

fn interrupted(id: TaskId) -> Failure {
    Failure::new(Exit::Interrupted, "stopped waiting; the task goes on")
        .hint(format_args!("follow it: zorai-compute events {id} --follow"))
        .hint(format_args!("get its result, once submitted: zorai-compute result {id} --output FILE"))
        .hint(format_args!("withdraw it while it is open: zorai-compute cancel {id}"))
}

/// The task that the flags describe, with the documented defaults.
fn task_of(
    args: &Args,
    runtime: Runtime,
    params: String,
    requester: Address,
    model: &Content,
    input: &Content,
) -> Outcome<Task> {
    let wants_gpu = !args.gpu_type.is_empty() || args.min_vram > 0;
    Ok(Task {
        requester,
        model_cid: model.reference.clone(),
        model_hash: model.pin("--model-hash", args.model_hash)?,
        input_cid: input.reference.clone(),
        input_hash: input.pin("--input-hash", args.input_hash)?,
        config: TaskConfig {
            runtime,
            params,
            gpu_type: args.gpu_type.clone(),
            gpu_count: args.gpu_count.unwrap_or(wants_gpu.into()),
            min_vram: args.min_vram,
            max_duration: args.max_duration,
            max_attempts: args.max_attempts,
        },
        token: Address::ZERO,
        budget: args.budget,
        provider_stake: Amount::ZERO,
        dispute_bond: Amount::ZERO,
        deadline: args.deadline.resolve(),
        dispute_window: args.dispute_window,
        arbiter_window: args.arbiter_window,
        arbiter: args.arbiter.unwrap_or(Address::ZERO),
        salt: args.salt.map_or_else(random_salt, Ok)?,
    })
}

/// A relay would refuse it after the uploads; this says so before.
fn check(task: &Task, wallet: &Wallet) -> Outcome {
    let signed = wallet.sign(task, &Domain::UNSETTLED).map_err(Failure::failed)?;
    let verified = signed.verify(&Domain::UNSETTLED).map_err(Failure::failed)?;
    taskmarket::publish(now(), &verified).map(|_| ()).map_err(Failure::usage)
}

/// A salt from the operating system's randomness.
pub(crate) fn random_salt() -> Outcome<Bytes32> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Failure::failed)?;
    Ok(Bytes32(B256::from(bytes)))
}

fn parse_amount(text: &str) -> Result<Amount, String> {
    text.parse().map_err(|error: ParseError| match text.parse::<f64>() {
        Ok(_) => "write whole units, such as 10000000000000000".to_owned(),
        Err(_) => error.to_string(),
    })
}

fn show(task: &Task, ui: &Ui) -> Outcome {
    let domain = Domain::UNSETTLED;
    ui.print_json(&json!({
        "domain": rpc::relay::DomainView::from(domain),
        "type": Task::type_string(),
        "message": task,
        "digest": task.id(&domain),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_durations_or_times() {
        assert_eq!(Deadline::parse("90s"), Ok(Deadline::In(90)));
        assert_eq!(Deadline::parse("2d"), Ok(Deadline::In(172_800)));
        let time = "2026-01-31T12:00:00Z";
        assert_eq!(Deadline::parse(time), Ok(Deadline::At(time.parse().unwrap())));
        for wrong in ["", "h", "1", "1.5h", "-1h", "1é", "99999999999999999999d", "tomorrow"] {
            assert!(Deadline::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn amounts_are_whole() {
        assert!(parse_amount("10000000000000000").is_ok());
        for wrong in ["-5", "0.01", "1e18"] {
            assert_eq!(parse_amount(wrong).unwrap_err(), "write whole units, such as 10000000000000000");
        }
        assert!(parse_amount("much").unwrap_err().contains("decimal digits"));
    }
}
