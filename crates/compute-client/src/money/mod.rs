//! Money: which chain and contract, reading them, and sending transactions.

mod coins;
mod draft;
mod effect;
mod fund;
mod kept;
mod outcome;
mod permit;
mod tokens;
mod untold;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use daemon::default_data_dir;
use escrow::tx::{Mined, Outbox, OutboxConfig, OutboxError, State};
use escrow::{Call, Chain, ChainError, Rpc, RpcConfig, RpcError};
use taskmarket::{Address, Amount, Domain, U256, eip55};
use url::Url;
use wallet::Wallet;

use crate::cli::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::ui::Ui;

pub(crate) use coins::Coins;
pub(crate) use draft::{Draft, Note, Paid, Unpublished, take_up, unpublished};
pub(crate) use effect::{Move, NOTHING, bring_about};
pub(crate) use fund::{Funding, ask, fund, fund_purpose, is_paid, say_terms, until_paid_for_good};
pub(crate) use kept::{Found, find, keep, tokens};
pub(crate) use outcome::{
    Approval, Stands, approve, check_stands, describe, dispute, is_at_stake, until_disputable, until_late,
};
pub(crate) use permit::{Handed, permit2, until_funded};
pub(crate) use tokens::pay_in;
pub(crate) use untold::{Untold, told, untold};

/// How long a transaction is waited for. It goes on afterwards, and is waited for again by the next command for the same purpose.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long another command of this account may hold the outbox.
const TURN_PATIENCE: Duration = Duration::from_secs(120);
/// What `fund` uses by the contract's gas snapshots, allowance included, rounded up; by Permit2 it is less than that.
const FUND_GAS: u64 = 150_000;
/// How often the outbox is asked for then.
const TURN_PAUSE: Duration = Duration::from_millis(100);

/// Which chain, and how transactions are sent on it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ChainArgs {
    /// An endpoint of the chain (JSON-RPC); repeat it for others to fall back to
    #[arg(
        long = "rpc-url",
        env = "ZORAI_RPC_URL",
        value_name = "URL",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Chain"
    )]
    rpc_urls: Vec<Url>,
    /// The escrow contract
    #[arg(long, env = "ZORAI_ESCROW", value_name = "[CHAIN_ID:]0xADDRESS", help_heading = "Chain")]
    escrow: Option<EscrowAt>,
    /// How many blocks, its own included, make a transaction final
    #[arg(long, env = "ZORAI_CONFIRMATIONS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Chain")]
    confirmations: u64,
    /// The most to pay for each unit of gas, in the coin's smallest unit
    #[arg(long, value_name = "AMOUNT", default_value_t = 200_000_000_000, help_heading = "Chain")]
    max_gas_price: u64,
}

/// Where an escrow contract stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EscrowAt {
    chain_id: Option<u64>,
    address: Address,
}

impl FromStr for EscrowAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (chain_id, address) = match text.split_once(':') {
            Some((id, address)) => {
                let id = id.parse().map_err(|_| format!("{id:?} is no chain id"))?;
                (Some(id), address)
            }
            None => (None, text),
        };
        let address = eip55::parse(address).map_err(|error| error.to_string())?;
        if address.is_zero() {
            return Err("the zero address holds no money".to_owned());
        }
        Ok(Self { chain_id, address })
    }
}

impl ChainArgs {
    /// Whether a chain is named at all.
    pub(crate) fn is_given(&self) -> bool {
        !self.rpc_urls.is_empty()
    }

    /// The endpoints, of this chain if it is known.
    pub(crate) fn rpc(&self, global: &Global, chain_id: Option<u64>) -> Outcome<Rpc> {
        if self.rpc_urls.is_empty() {
            return Err(Failure::usage("no endpoint of the chain is named")
                .hint("give --rpc-url URL, or set ZORAI_RPC_URL"));
        }
        let tls = daemon::tls::client_config(global.ca_file.as_deref()).map_err(Failure::usage)?;
        Rpc::new(RpcConfig::new(self.rpc_urls.clone(), chain_id), &tls)
            .map_err(|error| chain_failure(error.into()))
    }

    /// Connects to the contract: the one of `domain` where a task names it, else that of the flags.
    pub(crate) async fn connect(&self, global: &Global, domain: Option<Domain>) -> Outcome<Chain> {
        let named = domain
            .map(|domain| EscrowAt { chain_id: Some(domain.chain_id), address: domain.verifying_contract });
        if let (Some(named), Some(given)) = (named, self.escrow)
            && (given.address != named.address || given.chain_id.is_some_and(|id| Some(id) != named.chain_id))
        {
            return Err(Failure::usage(format_args!(
                "the task's money is in the contract {} of chain {}, not in the one that --escrow names",
                named.address,
                named.chain_id.unwrap_or_default()
            )));
        }
        let Some(at) = named.or(self.escrow) else {
            return Err(Failure::usage("no escrow contract is named").hint(
                "give --escrow 0xADDRESS, or set ZORAI_ESCROW; `zorai-compute escrow deploy` makes one",
            ));
        };
        Chain::connect(self.rpc(global, at.chain_id)?, at.address).await.map_err(chain_failure)
    }

    /// Connects, to send transactions of this wallet.
    pub(crate) async fn purse(
        &self,
        global: &Global,
        domain: Option<Domain>,
        wallet: &Wallet,
    ) -> Outcome<Purse> {
        Ok(self.purse_of(self.connect(global, domain).await?, wallet))
    }

    /// A purse on a chain that is connected.
    pub(crate) fn purse_of(&self, chain: Chain, wallet: &Wallet) -> Purse {
        Purse::new(chain, wallet, self.outbox_config(), default_data_dir("client"))
    }

    /// How transactions are sent.
    pub(crate) fn outbox_config(&self) -> OutboxConfig {
        OutboxConfig {
            confirmations: self.confirmations,
            max_fee_per_gas: self.max_gas_price,
            poll: Duration::from_millis(500),
            ..OutboxConfig::default()
        }
    }
}

/// One account and one contract.
#[derive(Debug, Clone)]
pub(crate) struct Purse {
    pub(crate) chain: Chain,
    pub(crate) wallet: Wallet,
    config: OutboxConfig,
    /// Where its transactions and tasks are kept.
    pub(crate) home: PathBuf,
}

impl Purse {
    /// A purse of this wallet at this contract, which keeps what it must not forget in `home`.
    pub(crate) fn new(chain: Chain, wallet: &Wallet, config: OutboxConfig, home: PathBuf) -> Self {
        Self { chain, wallet: wallet.clone(), config, home }
    }

    /// Whose purse it is.
    pub(crate) fn account(&self) -> Address {
        self.wallet.address()
    }

    /// Opens the account's outbox, in turn with other commands, which wait until it is dropped.
    pub(crate) async fn outbox(&self) -> Outcome<Outbox> {
        let rpc = self.chain.rpc().clone();
        open(&self.home, rpc, &self.wallet, &self.config).await.map_err(outbox_failure)
    }

    /// What paying a budget in costs in gas, about, in the native coin's smallest unit.
    pub(crate) async fn fund_gas(&self) -> Outcome<Amount> {
        let price = self.chain.head().await.map_err(chain_failure)?.base_fee;
        Ok(Amount(U256::from(price) * U256::from(FUND_GAS)))
    }
}

/// Opens the account's outbox in this folder, in turn with other commands.
pub(crate) async fn open(
    home: &Path,
    rpc: Rpc,
    wallet: &Wallet,
    config: &OutboxConfig,
) -> Result<Outbox, OutboxError> {
    let started = tokio::time::Instant::now();
    loop {
        match Outbox::open(&home.join("outbox"), rpc.clone(), wallet.clone(), config.clone()).await {
            Err(OutboxError::InUse { .. }) if started.elapsed() < TURN_PATIENCE => {
                tokio::time::sleep(TURN_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Sends through an open outbox. The caller has seen that the chain is without what this does: what was done for this purpose before is
/// looked for, and sent again where a reorganisation took it back.
pub(crate) async fn send(outbox: &Outbox, purpose: &str, call: Call, ui: &Ui) -> Outcome<Mined> {
    let mut entry = outbox.submit(purpose, call.clone()).await.map_err(outbox_failure)?;
    if matches!(entry.state, State::Done(_)) {
        entry = outbox.recheck(purpose).await.map_err(outbox_failure)?;
    }
    if matches!(entry.state, State::Failed(_)) {
        outbox.retry(purpose, call.clone()).await.map_err(outbox_failure)?;
    }
    let bar = ui.spinner("waiting for the chain");
    let sent = outbox.send(purpose, call, PATIENCE).await;
    bar.finish_and_clear();
    let mined = match sent {
        Ok(mined) => mined,
        Err(error) => return Err(given_up(outbox, purpose, error).await),
    };
    ui.detail(format_args!("{purpose}: {} in block {}", mined.tx, mined.block));
    Ok(mined)
}

/// Whether a transaction for this purpose was done.
pub(crate) async fn is_done(outbox: &Outbox, purpose: &str) -> Outcome<bool> {
    let entry = outbox.get(purpose).await.map_err(outbox_failure)?;
    Ok(entry.is_some_and(|entry| matches!(entry.state, State::Done(_))))
}

/// Whether a transaction for this purpose is planned or sent, and not final.
pub(crate) async fn is_under_way(outbox: &Outbox, purpose: &str) -> Outcome<bool> {
    let entry = outbox.get(purpose).await.map_err(outbox_failure)?;
    Ok(entry.is_some_and(|entry| !entry.is_final()))
}

/// Why a transaction was given up. One that is not even signed is withdrawn: no later command may send it beside its own.
async fn given_up(outbox: &Outbox, purpose: &str, error: OutboxError) -> Failure {
    let failure = outbox_failure(error);
    match outbox.withdraw(purpose).await {
        Ok(true) => failure.hint("nothing was sent"),
        // It is on its way, or failed.
        Ok(false) | Err(_) => failure,
    }
}

/// A chain's failure as a command's.
pub(crate) fn chain_failure(error: ChainError) -> Failure {
    match &error {
        ChainError::Rpc(RpcError::Setup(_)) => {
            Failure::usage(&error).hint("check --rpc-url and the chain's id")
        }
        ChainError::Rpc(rpc) if !rpc.is_answer() => Failure::new(Exit::Unreachable, &error)
            .hint("check --rpc-url; several endpoints can be named to fall back to"),
        ChainError::NoContract { .. } | ChainError::OtherContract { .. } => {
            Failure::unverified(&error).hint("check --escrow and --rpc-url")
        }
        ChainError::Rpc(_) | ChainError::Reverted(_) | ChainError::Malformed { .. } => {
            Failure::failed(&error)
        }
    }
}

/// An outbox's failure as a command's.
pub(crate) fn outbox_failure(error: OutboxError) -> Failure {
    match error {
        OutboxError::Chain(error) => chain_failure(error)
            .hint("what was signed is kept: the same command goes on where this one stopped"),
        OutboxError::InsufficientFunds { account, .. } => Failure::failed(&error)
            .hint(format_args!("send coins to {account}, and give the same command again")),
        OutboxError::TimedOut { .. } => Failure::failed(&error)
            .hint("the same command goes on waiting; --max-gas-price caps what is paid"),
        OutboxError::Io { .. }
        | OutboxError::InUse { .. }
        | OutboxError::Store(_)
        | OutboxError::Sign(_)
        | OutboxError::Failed { .. }
        | OutboxError::Unknown { .. }
        | OutboxError::NotFailed { .. } => Failure::failed(&error),
    }
}

/// A settled task's verdicts are transactions: without a chain there is nothing to send.
pub(crate) fn needs_chain(what: &str, id: taskmarket::TaskId) -> Failure {
    Failure::usage(format_args!("task {id} is settled on a chain: `{what}` sends a transaction"))
        .hint("give --rpc-url URL (or ZORAI_RPC_URL) and the key that published the task")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escrow_is_an_address_with_or_without_its_chain() {
        let text = "0x5FbDB2315678afecb367f032d93F642f64180aa3";
        let address = eip55::parse(text).unwrap();
        assert_eq!(text.parse(), Ok(EscrowAt { chain_id: None, address }));
        assert_eq!(format!("31337:{text}").parse(), Ok(EscrowAt { chain_id: Some(31337), address }));
        for wrong in ["", "0x12", "x:0x5FbDB2315678afecb367f032d93F642f64180aa3", &Address::ZERO.to_string()]
        {
            assert!(wrong.parse::<EscrowAt>().is_err(), "{wrong}");
        }
    }
}
