//! `escrow`: deploys the contract that holds the money, or shows one.

use std::path::PathBuf;
use std::time::Duration;

use daemon::default_data_dir;
use escrow::tx::{self, DeployError, Deployed, PERMIT2};
use escrow::{At, PermitFunding};
use serde_json::json;
use taskmarket::Address;

use crate::cli::{Global, parse_address};
use crate::failure::{Failure, Outcome};
use crate::key::{self, IfMissing};
use crate::money::{
    self, ChainArgs, Coins, Handed, Move, NOTHING, Untold, chain_failure, open, outbox_failure, told, untold,
};
use crate::ui::{Style, Ui};

/// How long a deployment is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// What to do with an escrow contract.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Deploy the contract with your key, and check what was deployed
    #[command(after_help = "Example:\n  \
        zorai-compute escrow deploy --rpc-url http://127.0.0.1:8545 --chain-id 31337 --keystore deployer.json\n\n\
        The contract has no owner and takes no fee: whoever deploys it has no rights over it, and anybody can use it.")]
    Deploy(Deploy),
    /// Check a contract, and show its terms
    Show(Show),
    /// Send the transaction that `run --permit-out` wrote: its signer pays the budget, your key the gas
    #[command(after_help = "Example:\n  \
        zorai-compute escrow fund permit.json --rpc-url https://rpc.example --keystore gas.json\n\n\
        The signature is for that task alone, and the transaction is the same whoever sends it.")]
    Fund(Fund),
}

#[derive(Debug, clap::Args)]
struct Deploy {
    #[command(flatten)]
    chain: ChainArgs,
    /// The chain that it is meant for; another one is refused
    #[arg(long, value_name = "ID")]
    chain_id: u64,
    /// The Permit2 that it uses
    #[arg(long, value_name = "ADDRESS", default_value_t = PERMIT2, value_parser = parse_address)]
    permit2: Address,
    /// Deploy another one, where this key has deployed one on this chain already
    #[arg(long)]
    again: bool,
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    chain: ChainArgs,
}

#[derive(Debug, clap::Args)]
struct Fund {
    /// The transaction
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Send without asking
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    chain: ChainArgs,
}

/// Deploys, shows or funds.
pub(crate) async fn run(global: &Global, args: &Args, ui: &Ui) -> Outcome {
    match &args.command {
        Command::Deploy(args) => deploy(global, args, ui).await,
        Command::Show(args) => show(global, args, ui).await,
        Command::Fund(args) => fund(global, args, ui).await,
    }
}

async fn deploy(global: &Global, args: &Deploy, ui: &Ui) -> Outcome {
    let rpc = args.chain.rpc(global, Some(args.chain_id))?;
    // Asked before the key: an endpoint of another chain is refused here.
    rpc.request::<String>("eth_chainId", json!([])).await.map_err(|error| chain_failure(error.into()))?;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let outbox = open(&default_data_dir("client"), rpc, &wallet, &args.chain.outbox_config())
        .await
        .map_err(outbox_failure)?;
    let again = if args.again { ":again" } else { "" };
    let purpose = format!("deploy:{}{again}", args.permit2);
    let untold = if args.again { untold(&outbox, &purpose, ui).await? } else { Untold::Nothing };
    let waits = format!("deploying from {}, and waiting until the chain has it", wallet.address());
    let deployed = ui.during(waits, tx::deploy(&outbox, &purpose, args.permit2, PATIENCE)).await;
    let Deployed { address, chain_id, tx, block, gas_used, permit2, .. } =
        deployed.map_err(|error| match error {
            DeployError::Outbox(error) => outbox_failure(error),
            DeployError::Chain(error) => chain_failure(error).hint("--again deploys another one"),
            DeployError::Different { .. } => Failure::unverified(error),
        })?;
    ui.say(format_args!(
        "{} code, signing domain and Permit2 are as committed; {gas_used} gas in block {block}",
        ui.paint(Style::Good, "verified:")
    ));
    for (who, flags) in [
        ("relay", format!("compute-relay --escrow {chain_id}:{address} --rpc-url URL")),
        ("provider", format!("compute-agent --escrow {chain_id}:{address} --rpc-url URL")),
        ("you", format!("zorai-compute run --settle escrow --escrow {chain_id}:{address} --rpc-url URL")),
    ] {
        ui.say(format_args!("  {who:<9}{flags}"));
    }
    if ui.json {
        let mut shown = json!({
            "address": address, "chain_id": chain_id, "tx": tx, "block": block, "gas_used": gas_used, "permit2": permit2,
        });
        if !matches!(untold, Untold::Nothing) {
            shown["resumed"] = json!(true);
        }
        ui.print_json(&shown)?;
    } else {
        ui.print(address)?;
    }
    // The next --again is another one; without it, it is this one for ever.
    if args.again { told(&outbox, &purpose).await } else { Ok(()) }
}

async fn show(global: &Global, args: &Show, ui: &Ui) -> Outcome {
    let chain = args.chain.connect(global, None).await?;
    let domain = chain.domain();
    let permit2 = chain.permit2().await.map_err(chain_failure)?;
    let head = chain.head().await.map_err(chain_failure)?;
    if ui.json {
        return ui.print_json(&json!({
            "address": chain.escrow(), "chain_id": domain.chain_id, "permit2": permit2,
            "block": head.number, "time": head.time, "domain_separator": domain.separator(),
        }));
    }
    for (name, value) in [
        ("contract", chain.escrow().to_string()),
        ("chain", domain.chain_id.to_string()),
        ("code", "the committed one".to_owned()),
        ("permit2", permit2.to_string()),
        ("block", format!("{} at {}", head.number, head.time)),
    ] {
        ui.print(format_args!("{name:<9} {value}"))?;
    }
    Ok(())
}

/// Sends somebody else's funding.
async fn fund(global: &Global, args: &Fund, ui: &Ui) -> Outcome {
    let handed = Handed::read(&args.file)?;
    let wallet = key::load(global, ui, IfMissing::Refuse).await?;
    let purse = args.chain.purse(global, Some(handed.domain()?), &wallet).await?;
    let chain = &purse.chain;
    let funding = chain.read_permit_funding(&handed.call.data).await.map_err(chain_failure)?;
    let purpose = money::fund_purpose(funding.id);
    let is_begun = money::is_under_way(&purse.outbox().await?, &purpose).await?;
    if !is_begun {
        // Refused here is refused before anything is asked or kept.
        chain.simulate(&funding.call, purse.account(), At::Latest).await.map_err(chain_failure)?;
    }
    let PermitFunding { id, requester, payer, token, budget, deadline, call } = funding;
    let coins = Coins::of(chain, token).await?;
    ui.say(format_args!("this pays the budget of task {id} in:"));
    for (name, value) in [
        ("contract", format!("{} on chain {}", chain.escrow(), chain.domain().chain_id)),
        ("budget", format!("{} from {payer}, who signed for it until {deadline}", coins.show(budget))),
        ("requester", requester.to_string()),
        ("gas", format!("{} from {}", Coins::native().show(purse.fund_gas().await?), purse.account())),
    ] {
        ui.say(format_args!("  {} {value}", ui.paint(Style::Dim, format!("{name:<9}"))));
    }
    if !args.yes && !is_begun {
        money::ask("send?", "nothing was sent", ui)?;
    }
    let step = Move { id, purpose: &purpose, call, takes: NOTHING, there: money::is_paid };
    let mined = money::bring_about(&purse, &purse.outbox().await?, step, ui).await?;
    let tx = mined.map(|mined| mined.tx);
    if ui.json {
        return ui.print_json(&json!({ "task_id": id, "settlement": "funded", "tx": tx }));
    }
    match tx {
        Some(tx) => ui.print(tx),
        None => ui.print("funded"),
    }
}
