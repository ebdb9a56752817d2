//! `arbiter`: deciding disputes from evidence documents, which need no relay and take nobody's word.

use std::path::{Path, PathBuf};

use escrow::{At, Calls, Status};
use rpc::evidence::{self, Evidence, EvidenceEvent};
use serde_json::{Value, json};
use taskmarket::{
    ALL_BPS, Address, Amount, Bytes32, ContentHash, Dispute, Money, Recorded, ResolveDispute, Signed, State,
    TaskRecord, Timestamp, U256, keccak256, replay,
};

use crate::cli::Global;
use crate::failure::{Context as _, Exit, Failure, Outcome};
use crate::follow::now;
use crate::key::{self, IfMissing};
use crate::money::{self, ChainArgs, Coins, Handed, Move, NOTHING, Purse, chain_failure};
use crate::proof;
use crate::rerun::{Agreement, check_runtime, rerun};
use crate::ui::{Style, Ui, clean};

/// The largest evidence that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What to do as an arbiter.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    zorai-compute arbiter list cases/\n  \
    zorai-compute arbiter show evidence.json\n  \
    zorai-compute arbiter rerun evidence.json --relay https://relay.example     (wasm, embed)\n  \
    zorai-compute arbiter resolve evidence.json --provider-bps 2500 --rpc-url https://rpc.example --keystore arbiter.json\n\n\
    Evidence is the answer of GET /v1/tasks/0xTASK/evidence at the relay; a party to the dispute sends it to you.")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

/// What an arbiter does.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the disputes in a folder of evidence, or in files
    List {
        /// Files with evidence, or folders of them
        #[arg(value_name = "FILE|DIR", required = true)]
        paths: Vec<PathBuf>,
    },
    /// Show a dispute: what was asked, what was proven, what is objected, and what is at stake
    Show {
        /// A file with evidence
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Sign the verdict, carry it to the chain, and hand it to the relay that --relay names
    Resolve(Resolve),
    /// Run the task again on this machine, and propose a verdict
    Rerun {
        /// A file with evidence
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// A verdict.
#[derive(Debug, clap::Args)]
struct Resolve {
    /// A file with evidence
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The provider's share of budget, stake and bond, in basis points: 10000 is all, 0 nothing
    #[arg(long, value_name = "BPS", value_parser = clap::value_parser!(u32).range(0..=ALL_BPS as i64))]
    provider_bps: u32,
    /// Only print the signed transaction, which anybody can send
    #[arg(long)]
    print: bool,
    /// Send without asking
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    chain: ChainArgs,
}

/// Does it.
pub(crate) async fn run(global: &Global, args: Args, ui: &Ui) -> Outcome {
    match args.action {
        Action::List { paths } => list(&paths, ui),
        Action::Show { file } => show(&Case::read(&file)?, ui),
        Action::Resolve(args) => Box::pin(resolve(global, &Case::read(&args.file)?, &args, ui)).await,
        Action::Rerun { file } => Box::pin(run_again(global, &Case::read(&file)?, ui)).await,
    }
}

/// A dispute, as sound evidence has it.
struct Case {
    record: TaskRecord,
    /// The dispute, open or ended.
    dispute: Option<Dispute>,
}

impl Case {
    /// Reads a file, and checks all of it.
    fn read(path: &Path) -> Outcome<Self> {
        let metadata = std::fs::metadata(path).or_usage(path.display())?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(Failure::usage(format_args!("{} is too large for evidence", path.display())));
        }
        let bytes = std::fs::read(path).or_usage(path.display())?;
        let unsound = |error: &dyn std::fmt::Display| {
            Failure::unverified(format_args!("{} holds no sound evidence: {error}", path.display()))
        };
        let evidence: Evidence = serde_json::from_slice(&bytes).map_err(|error| unsound(&error))?;
        evidence::verify(&evidence).map_err(|error| unsound(&error))?;
        let recorded: Vec<Recorded> = evidence.events.iter().map(EvidenceEvent::recorded).collect();
        let record = replay(&recorded).map_err(|error| unsound(&error))?;
        let dispute = dispute_of(&record);
        Ok(Self { record, dispute })
    }

    /// The dispute, while it can be decided.
    fn open(&self) -> Outcome<&Dispute> {
        let is_open = match self.record.domain.is_settled() {
            true => self.record.settlement.status == Money::Disputed,
            false => matches!(self.record.state, State::Disputed { .. }),
        };
        self.dispute.as_ref().filter(|_| is_open).ok_or_else(|| {
            Failure::failed(format_args!(
                "task {} is {}: there is nothing to decide",
                self.record.id,
                self.record.status()
            ))
        })
    }

    /// Whose attempt it is about, and what they proved: where there is money, by the chain's word.
    fn proven(&self) -> (Option<Address>, u32, Option<ContentHash>) {
        let (record, money) = (&self.record, &self.record.settlement);
        if record.domain.is_settled() {
            return (money.provider.map(|provider| provider.0), money.attempt, money.result_hash);
        }
        let proof = record.submission().map(|submission| &submission.proof.message);
        (proof.map(|proof| proof.provider), record.attempts, proof.map(|proof| proof.result_hash))
    }

    /// What is divided: budget, stake and bond of a settled task; nothing otherwise.
    fn pot(&self) -> Amount {
        let task = &self.record.task;
        let parts = [task.budget, task.provider_stake, task.dispute_bond];
        let sum = parts.into_iter().try_fold(U256::ZERO, |sum, part| sum.checked_add(part.0));
        Amount(sum.filter(|_| self.record.domain.is_settled()).unwrap_or_default())
    }

    fn json(&self) -> Value {
        let (record, task) = (&self.record, &self.record.task);
        let (provider, attempt, result_hash) = self.proven();
        let proof = record.submission().map(|submission| &submission.proof.message);
        json!({
            "task_id": record.id,
            "status": record.status(),
            "settlement": record.settlement.as_str(),
            "arbiter": task.arbiter.to_string(),
            "requester": task.requester.to_string(),
            "provider": provider.map(|provider| provider.to_string()),
            "attempt": attempt,
            "runtime": task.config.runtime,
            "model_cid": task.model_cid,
            "input_cid": task.input_cid,
            "result_cid": proof.map(|proof| &proof.result_cid),
            "result_hash": result_hash,
            "reason": self.dispute.as_ref().map(|dispute| &dispute.reason),
            "evidence": self.dispute.as_ref().and_then(|dispute| dispute.evidence.as_ref()),
            "resolve_until": self.dispute.as_ref().map(|dispute| dispute.resolve_until),
            "token": task.token.to_string(),
            "budget": task.budget,
            "provider_stake": task.provider_stake,
            "dispute_bond": task.dispute_bond,
            "pot": self.pot(),
        })
    }
}

/// The dispute of a task. On a settled one that is the chain's, of which the relay may have no result.
fn dispute_of(record: &TaskRecord) -> Option<Dispute> {
    let money = &record.settlement;
    match &record.state {
        State::Disputed { dispute, .. } | State::Resolved { dispute, .. } => Some(dispute.clone()),
        State::Open
        | State::Accepted { .. }
        | State::Submitted { .. }
        | State::Completed { .. }
        | State::Cancelled
        | State::Expired
        | State::Failed => {
            let said = record.complaint.as_ref().map(|complaint| &complaint.message);
            let said =
                said.filter(|said| money.reason_hash == Some(Bytes32(keccak256(said.reason.as_bytes()))));
            (money.status == Money::Disputed).then(|| Dispute {
                reason: said.map(|said| said.reason.clone()).unwrap_or_default(),
                evidence: said.and_then(|said| said.evidence.parse().ok()),
                since: record.updated_at,
                resolve_until: money.until.unwrap_or_default(),
            })
        }
    }
}

fn list(paths: &[PathBuf], ui: &Ui) -> Outcome {
    let mut cases = Vec::new();
    for path in paths {
        if !path.is_dir() {
            cases.push(Case::read(path)?);
            continue;
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).or_usage(path.display())? {
            files.push(entry.or_usage(path.display())?.path());
        }
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        for file in files {
            match Case::read(&file) {
                Ok(case) => cases.push(case),
                Err(failure) => ui.warn(failure.message()),
            }
        }
    }
    cases.retain(|case| case.dispute.is_some());
    cases.sort_by_key(|case| case.dispute.as_ref().map(|dispute| dispute.resolve_until));
    if ui.json {
        return ui.print_json(&cases.iter().map(Case::json).collect::<Vec<_>>());
    }
    for case in &cases {
        let dispute = case.dispute.as_ref();
        let until = dispute.map_or(Timestamp::default(), |dispute| dispute.resolve_until);
        let reason = dispute.map(|dispute| clean(&dispute.reason)).unwrap_or_default();
        let record = &case.record;
        ui.print(format_args!(
            "{}  {}  until {until}  {}  {reason:?}",
            record.id,
            record.status(),
            case.pot()
        ))?;
    }
    Ok(())
}

fn show(case: &Case, ui: &Ui) -> Outcome {
    if ui.json {
        return ui.print_json(&case.json());
    }
    let (record, task) = (&case.record, &case.record.task);
    let Some(dispute) = &case.dispute else {
        return Err(Failure::failed(format_args!(
            "task {} is {}: nobody disputes it",
            record.id,
            record.status()
        )));
    };
    ui.print(format_args!(
        "task       {} ({}, money {})",
        record.id,
        record.status(),
        record.settlement.as_str()
    ))?;
    ui.print(format_args!("requester  {}", task.requester))?;
    ui.print(format_args!("arbiter    {}, until {}", task.arbiter, dispute.resolve_until))?;
    ui.print(format_args!("asked      {} of {} on {}", task.config.runtime, task.model_cid, task.input_cid))?;
    if let (Some(provider), attempt, Some(result)) = case.proven() {
        ui.print(format_args!("provider   {provider} in attempt {attempt}"))?;
        let proof = record.submission().map(|submission| &submission.proof.message);
        match proof.filter(|proof| proof.result_hash == result) {
            Some(proof) => {
                ui.print(format_args!("proven     result {result} on {}", clean(&proof.gpu_name)))?
            }
            None => ui.print(format_args!("proven     result {result}, which the relay never got"))?,
        }
    }
    let reason = if dispute.reason.is_empty() { "(the relay has its hash alone)" } else { &dispute.reason };
    ui.print(format_args!("objection  {}", clean(reason)))?;
    if let Some(reference) = &dispute.evidence {
        ui.print(format_args!("evidence   {reference}"))?;
    }
    let pot = case.pot();
    ui.print(format_args!(
        "at stake   {pot} (budget {}, stake {}, bond {}) of token {}",
        task.budget, task.provider_stake, task.dispute_bond, task.token
    ))?;
    for bps in [ALL_BPS, ALL_BPS / 2, 0] {
        let provider = share(pot, bps);
        let requester = pot.checked_sub(provider).unwrap_or(Amount::ZERO);
        ui.print(format_args!("  {bps:>5} bps: provider {provider}, requester {requester}"))?;
    }
    Ok(())
}

/// The provider's part, rounded down as the contract does.
fn share(pot: Amount, bps: u32) -> Amount {
    let all = U256::from(ALL_BPS);
    // Divided before it is multiplied, so that nothing overflows, and the rest by itself.
    let bps = U256::from(bps);
    Amount(pot.0 / all * bps + pot.0 % all * bps / all)
}

async fn resolve(global: &Global, case: &Case, args: &Resolve, ui: &Ui) -> Outcome {
    let dispute = case.open()?;
    let record = &case.record;
    let is_settled = record.domain.is_settled();
    if is_settled && !args.print && !args.chain.is_given() {
        return Err(money::needs_chain("arbiter resolve", record.id)
            .hint("--print signs, and prints the transaction for anybody to send"));
    }
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    if wallet.address() != record.task.arbiter {
        return Err(Failure::new(
            Exit::NotAuthorised,
            format_args!("the arbiter is {}, this key is of {}", record.task.arbiter, wallet.address()),
        ));
    }
    if now() >= dispute.resolve_until {
        ui.warn(format_args!("the time to decide ended, {}", dispute.resolve_until));
    }
    let verdict = ResolveDispute {
        task_id: record.id,
        attempt: case.proven().1,
        provider_bps: args.provider_bps,
        issued_at: now(),
    };
    let signed = wallet.sign(&verdict, &record.domain).map_err(Failure::failed)?;
    if is_settled && !args.print {
        let purse = args.chain.purse(global, Some(record.domain), &wallet).await?;
        return carry(global, case, &purse, &signed, args.yes, ui).await;
    }
    let handed_in = match hand_in(global, record, &signed, ui).await {
        // The chain decides, whatever the relay makes of it.
        Err(failure) if is_settled => {
            ui.warn(format_args!("the relay was not told: {}", failure.message()));
            false
        }
        handed_in => handed_in?,
    };
    let call = Calls::new(record.domain.verifying_contract).resolve(&record.task, &signed);
    let transaction = is_settled.then(|| Handed::new(record.domain, call));
    if ui.json {
        return ui.print_json(&json!({
            "mutation": signed.message,
            "signature": signed.signature,
            "handed_in": handed_in,
            "transaction": transaction,
        }));
    }
    let gets = share(case.pot(), args.provider_bps);
    ui.say(format_args!("the provider gets {gets} of {}", case.pot()));
    match transaction {
        Some(transaction) => {
            ui.say("anybody can send this transaction; it counts once it is on the chain:");
            ui.print(serde_json::to_string(&transaction).map_err(Failure::failed)?)
        }
        None => ui.print(signed.signature),
    }
}

/// Hands a verdict to the relay, if one is named.
async fn hand_in(
    global: &Global,
    record: &TaskRecord,
    verdict: &Signed<ResolveDispute>,
    ui: &Ui,
) -> Outcome<bool> {
    if global.relay.as_deref().is_none_or(str::is_empty) {
        return Ok(false);
    }
    global.relay(ui)?.tell(record.id, "resolve", verdict.clone()).await?;
    Ok(true)
}

/// Says what a verdict does, asks, unless `yes`, and sends it from the arbiter's account.
async fn carry(
    global: &Global,
    case: &Case,
    purse: &Purse,
    verdict: &Signed<ResolveDispute>,
    yes: bool,
    ui: &Ui,
) -> Outcome {
    let (record, chain) = (&case.record, &purse.chain);
    let task = &record.task;
    let call = chain.calls().resolve(task, verdict);
    let purpose = format!("resolve:{}", record.id);
    let is_begun = money::is_under_way(&purse.outbox().await?, &purpose).await?;
    if !is_begun {
        // Refused here is refused before anything is asked: a dispute that was ended, another attempt, a time that is over.
        chain.simulate(&call, purse.account(), At::Latest).await.map_err(chain_failure)?;
    }
    let coins = Coins::of(chain, task.token).await?;
    let (pot, provider) = (case.pot(), share(case.pot(), verdict.message.provider_bps));
    let requester = pot.checked_sub(provider).unwrap_or(Amount::ZERO);
    let of = case.proven().0.unwrap_or_default();
    ui.say(format_args!("the verdict on task {}, which is final:", record.id));
    for (name, value) in [
        ("provider", format!("{of} gets {}", coins.show(provider))),
        ("requester", format!("{} gets {}", task.requester, coins.show(requester))),
        ("gas", format!("from {}", purse.account())),
    ] {
        ui.say(format_args!("  {} {value}", ui.paint(Style::Dim, format!("{name:<9}"))));
    }
    if !yes && !is_begun {
        money::ask("send it?", "nothing was decided", ui)?;
    }
    let there = |status| status == Status::Split;
    let step = Move { id: record.id, purpose: &purpose, call, takes: NOTHING, there };
    let mined = money::bring_about(purse, &purse.outbox().await?, step, ui).await?;
    let tx = mined.map(|mined| mined.tx);
    let how = tx.map_or("it was divided before".to_owned(), |tx| format!("in transaction {tx}"));
    ui.say(format_args!("{} {how}", ui.paint(Style::Good, "resolved:")));
    // The chain has decided, and the relay sees that by itself: what it misses is the arbiter's own words.
    let handed_in = hand_in(global, record, verdict, ui).await.unwrap_or_else(|failure| {
        ui.detail(format_args!("the relay was not told: {}", failure.message()));
        false
    });
    if ui.json {
        return ui.print_json(&json!({
            "task_id": record.id, "settlement": "split", "tx": tx, "mutation": verdict.message,
            "signature": verdict.signature, "handed_in": handed_in, "to_provider": provider, "to_requester": requester,
        }));
    }
    match tx {
        Some(tx) => ui.print(tx),
        None => ui.print("resolved"),
    }
}

async fn run_again(global: &Global, case: &Case, ui: &Ui) -> Outcome {
    case.open()?;
    let record = &case.record;
    check_runtime(record.task.config.runtime)?;
    let relay = global.reading_relay(ui).await?;
    let view = relay.task(record.id).await?;
    let checked = proof::fetch(&relay, &view, record.id, ui).await?;
    let proven = record.submission().map(|submission| &submission.proof.message);
    if proven != Some(&checked.proof) {
        return Err(Failure::unverified("the relay shows another proof than the evidence"));
    }
    match rerun(&relay, &record.task, &checked, ui).await {
        Ok(agreement) => propose(case, ALL_BPS, &agreed(&agreement), ui),
        Err(failure) if failure.exit() == Exit::Unverified => propose(case, 0, failure.message(), ui),
        Err(failure) => Err(failure),
    }
}

fn agreed(agreement: &Agreement) -> String {
    match agreement.largest_difference {
        Some(difference) => format!("run again, the task gives the same embeddings, to {difference:e}"),
        None => format!("run again, the task gives the same result, {}", agreement.result_hash),
    }
}

fn propose(case: &Case, provider_bps: u32, why: &str, ui: &Ui) -> Outcome {
    if ui.json {
        return ui.print_json(&json!({
            "task_id": case.record.id,
            "provider_bps": provider_bps,
            "why": why,
            "result_hash": case.proven().2,
        }));
    }
    ui.print(why)?;
    ui.print(format_args!("proposed: --provider-bps {provider_bps}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_down_and_never_overflow() {
        let pot = |value: u64| Amount(U256::from(value));
        assert_eq!(share(pot(2001), 5000), pot(1000));
        assert_eq!(share(pot(2001), ALL_BPS), pot(2001));
        assert_eq!(share(pot(2001), 0), Amount::ZERO);
        assert_eq!(share(pot(9999), 1), Amount::ZERO);
        assert_eq!(share(Amount(U256::MAX), ALL_BPS), Amount(U256::MAX));
    }
}
