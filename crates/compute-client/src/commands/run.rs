//! `run`: publishes a task, and with `--poll` waits for its checked result.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::value_parser;
use escrow::Chain;
use serde_json::json;
use taskmarket::{
    Address, Amount, B256, Bytes32, ContentHash, Domain, MAX_ATTEMPTS, MAX_DURATION_SECS, MAX_GPU_COUNT,
    MAX_WINDOW_SECS, Message as _, ParseError, Runtime, Task, TaskConfig, TaskId, Timestamp,
};
use wallet::Wallet;

use crate::cli::{Global, parse_address};
use crate::commands::params;
use crate::commands::poll::{Approve, Verdict, Verify, Watched};
use crate::commands::publish::{Payment, go_on, publish};
use crate::content::{Content, Named};
use crate::failure::{Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::money::{self, ChainArgs, Funding, Note, Paid, Purse};
use crate::proof;
use crate::relay::Relay;
use crate::rerun;
use crate::ui::{Ui, span};

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
    Paid through the escrow contract: the budget is asked for, paid in, and goes to the provider when the result verifies:\n    \
    zorai-compute run --model program.wasm --input data.txt --poll --settle escrow --rpc-url https://rpc.example \\\n      \
    --escrow 0xCONTRACT --arbiter 0xARBITER --budget 10000000000000000 --keystore me.json\n\n  \
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
    /// Who resolves disputes; a settled task needs one, or no dispute window [default: nobody]
    #[arg(long, env = "ZORAI_ARBITER", value_name = "ADDRESS", value_parser = parse_address, help_heading = "Terms")]
    arbiter: Option<Address>,
    #[command(flatten)]
    money: Money,
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

/// Where a task's money is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Settle {
    /// Nowhere: the task is unsettled, and no money moves.
    None,
    /// In the escrow contract: paid by the proof, or refunded.
    Escrow,
}

/// How a task is paid.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Money")]
struct Money {
    /// Where the money is: `none` moves none; `escrow` pays the budget into the contract first
    #[arg(long, value_enum, default_value_t = Settle::None)]
    settle: Settle,
    /// The token that pays [default: the chain's coin]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    token: Option<Address>,
    /// What a provider locks while it works [default: half the budget where results can be disputed]
    #[arg(long, value_name = "AMOUNT", value_parser = parse_amount)]
    provider_stake: Option<Amount>,
    /// What a dispute costs you at first [default: half the budget where results can be disputed]
    #[arg(long, value_name = "AMOUNT", value_parser = parse_amount)]
    dispute_bond: Option<Amount>,
    /// Pay a token by your signature at Permit2, for this task alone, in place of an allowance of the contract
    #[arg(long, requires = "token")]
    permit2: bool,
    /// With --permit2: write the transaction to this file, for another account to send with `escrow fund FILE`, and wait for the money
    #[arg(long, value_name = "FILE", requires = "permit2")]
    permit_out: Option<PathBuf>,
    /// Pay without asking
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    chain: ChainArgs,
}

impl Money {
    /// By whose transaction the budget is paid in.
    fn funding(&self) -> Funding {
        match &self.permit_out {
            Some(file) => Funding::Handed(file.clone()),
            None if self.permit2 => Funding::Permit,
            None => Funding::Own,
        }
    }
}

impl Args {
    /// Whether these flags, which gave `task` now, may have given `earlier` before: salt and deadline differ as far as they do not name
    /// them.
    fn means(&self, earlier: &Task, note: Note, task: &Task) -> bool {
        let salt = if self.salt.is_some() { task.salt } else { earlier.salt };
        let deadline = match self.deadline {
            Deadline::In(seconds) if note.deadline_in != Some(seconds) => return false,
            Deadline::In(_) => earlier.deadline,
            Deadline::At(time) => time,
        };
        *earlier == Task { salt, deadline, ..task.clone() }
    }

    /// Says what the task costs, and asks, unless the flags say yes.
    async fn agree(
        &self,
        purse: &Purse,
        task: &Task,
        funding: &Funding,
        otherwise: &str,
        ui: &Ui,
    ) -> Outcome {
        money::say_terms(purse, task, funding, ui).await?;
        if self.money.yes { Ok(()) } else { money::ask("pay?", otherwise, ui) }
    }
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
    let chain = match args.money.settle {
        Settle::None => None,
        Settle::Escrow => Some(args.money.chain.connect(global, None).await?),
    };
    let domain = chain.as_ref().map_or(Domain::UNSETTLED, Chain::domain);
    let (task, model, input) = prepare(&args, &domain, relay.as_ref()).await?;
    // A key is made for a task that passed all that can be checked here.
    let wallet = key::load(global, ui, IfMissing::Make).await?;
    let task = Task { requester: wallet.address(), ..task };
    check(&task, &domain, &wallet)?;
    let Some(relay) = relay else { return show(&task, domain, ui) };
    let purse = chain.map(|chain| args.money.chain.purse_of(chain, &wallet));
    let started = Instant::now();
    let (task, id) =
        Box::pin(begin(&args, &relay, &wallet, task, &[&model, &input], purse.as_ref(), ui)).await?;
    if !args.poll {
        ui.say(format_args!(
            "wait for its result: zorai-compute watch {id}; see where it is: zorai-compute status {id}"
        ));
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
    let purse = purse.as_ref();
    let watched = Watched { relay: &relay, wallet: &wallet, task: &task, id, purse, started, ui };
    watched.deliver(verdict, output).await
}

/// Publishes the task, and pays for it before where there is a purse. Where this machine has begun to pay for the same and has not
/// published it, it goes on with that one.
async fn begin(
    args: &Args,
    relay: &Relay,
    wallet: &Wallet,
    task: Task,
    contents: &[&Content],
    purse: Option<&Purse>,
    ui: &Ui,
) -> Outcome<(Task, TaskId)> {
    let Some(purse) = purse else {
        let id = publish(relay, wallet, &task, contents, None, ui).await?;
        return Ok((task, id));
    };
    check_served(relay, purse.chain.domain()).await?;
    let funding = args.money.funding();
    if let Some(unpublished) =
        money::unpublished(purse, |noted, note| args.means(noted, note, &task), ui).await?
    {
        let task = unpublished.signed.message.clone();
        ui.say(format_args!(
            "going on with task {}, which was signed before and not published; a --salt of your own makes another",
            task.id(&purse.chain.domain())
        ));
        // What is on its way to be paid may be neither signed nor sent yet.
        let pays_by = match (unpublished.paid, &funding) {
            (Paid::Whole, _) => None,
            (Paid::OnItsWay, Funding::Handed(_)) => Some(&Funding::Own),
            (Paid::OnItsWay | Paid::ByAnother, funding) => Some(funding),
        };
        if let Some(pays_by) = pays_by {
            let agreed = args.agree(purse, &task, pays_by, "no more was paid, and nothing published", ui);
            if let Err(failure) = agreed.await {
                return Err(unpublished.draft.advise(purse, &task, failure).await);
            }
        }
        let id = go_on(relay, contents, purse, unpublished, Some(&funding), ui).await?;
        return Ok((task, id));
    }
    args.agree(purse, &task, &funding, "nothing was paid or published", ui).await?;
    let deadline_in = match args.deadline {
        Deadline::In(seconds) => Some(seconds),
        Deadline::At(_) => None,
    };
    let payment = Payment { purse, funding: &funding, deadline_in };
    let id = publish(relay, wallet, &task, contents, Some(payment), ui).await?;
    Ok((task, id))
}

/// Looks at what the flags name, then reads and hashes it, and gives the task, of nobody yet.
async fn prepare(args: &Args, domain: &Domain, relay: Option<&Relay>) -> Outcome<(Task, Content, Content)> {
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
    let limit = match relay {
        Some(relay) => relay.limits().await?.max_artifact_bytes,
        None => u64::MAX,
    };
    let model = model.content(Some(runtime), limit).await?;
    let input = input.content(None, limit).await?;
    let nobody = Wallet::random();
    let task = task_of(args, runtime, params, nobody.address(), &model, &input)?;
    check(&task, domain, &nobody)?;
    Ok((task, model, input))
}

fn check_usage(args: &Args, ui: &Ui) -> Outcome {
    if args.model == "-" && args.input == "-" {
        return Err(Failure::usage("standard input cannot be both --model and --input"));
    }
    if ui.json && args.output.as_ref().is_some_and(|path| path.as_os_str() == "-") {
        return Err(Failure::usage("--json and --output - would share standard output")
            .hint("write the result to a file: --output FILE"));
    }
    if let Some(path) = args.output.as_deref() {
        proof::check_output(path)?;
    }
    check_money(args)?;
    if args.approve == Approve::Ask && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("--approve ask needs a terminal to ask on"));
    }
    Ok(())
}

fn check_money(args: &Args) -> Outcome {
    let money = &args.money;
    match money.settle {
        Settle::None
            if money.token.is_some() || money.provider_stake.is_some() || money.dispute_bond.is_some() =>
        {
            Err(Failure::usage("--token, --provider-stake and --dispute-bond are for tasks that are paid")
                .hint("--settle escrow pays through the contract"))
        }
        Settle::None => Ok(()),
        Settle::Escrow if args.arbiter.is_none() && args.dispute_window > 0 => {
            Err(Failure::usage("a paid task needs somebody who resolves disputes")
                .hint("name one with --arbiter 0xADDRESS, or ZORAI_ARBITER")
                .hint("or pay on proof, without disputes: --dispute-window 0"))
        }
        Settle::Escrow if !money.yes && !args.dry_run && !std::io::stdin().is_terminal() => {
            Err(Failure::usage("paying asks on a terminal, and there is none")
                .hint("--yes pays without asking"))
        }
        Settle::Escrow => Ok(()),
    }
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
    let disputable = args.money.settle == Settle::Escrow && args.dispute_window > 0;
    let half = if disputable { args.budget.half_up() } else { Amount::ZERO };
    // Without a dispute there is nothing for an arbiter to wait for.
    let pays_on_proof = args.money.settle == Settle::Escrow && args.dispute_window == 0;
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
        token: args.money.token.unwrap_or(Address::ZERO),
        budget: args.budget,
        provider_stake: args.money.provider_stake.unwrap_or(half),
        dispute_bond: args.money.dispute_bond.unwrap_or(half),
        deadline: args.deadline.resolve(),
        dispute_window: args.dispute_window,
        arbiter_window: if pays_on_proof { 0 } else { args.arbiter_window },
        arbiter: args.arbiter.unwrap_or(Address::ZERO),
        salt: args.salt.map_or_else(random_salt, Ok)?,
    })
}

/// A relay would refuse it after the uploads; this says so before.
fn check(task: &Task, domain: &Domain, wallet: &Wallet) -> Outcome {
    let signed = wallet.sign(task, domain).map_err(Failure::failed)?;
    let verified = signed.verify(domain).map_err(Failure::failed)?;
    taskmarket::publish(now(), &verified).map(|_| ()).map_err(Failure::usage)
}

/// Whether the relay serves tasks of this contract: asked before anything is paid.
async fn check_served(relay: &Relay, domain: Domain) -> Outcome {
    let served = relay.info().await?.domains;
    let is_it = |view: &rpc::relay::DomainView| {
        (view.chain_id, view.verifying_contract) == (domain.chain_id, domain.verifying_contract)
    };
    if served.iter().any(is_it) {
        return Ok(());
    }
    let (contract, chain_id) = (domain.verifying_contract, domain.chain_id);
    Err(Failure::failed(format_args!("the relay does not serve the contract {contract} on chain {chain_id}"))
        .hint("`curl RELAY/v1/info` lists the contracts that it serves"))
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

fn show(task: &Task, domain: Domain, ui: &Ui) -> Outcome {
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
