//! The demo's money: a development chain as a child, the escrow contract on it, and what moved there.

use std::path::Path;
use std::time::Duration;

use daemon::read_secret_file;
use escrow::abi::ZORAIComputeEscrow::ZORAIComputeEscrowEvents as Change;
use escrow::anvil::{ACCOUNTS, Anvil, KEYS};
use escrow::tx::{self, Outbox, OutboxConfig, PERMIT2};
use escrow::{Chain, Rpc, RpcConfig};
use serde_json::json;
use taskmarket::{Address, Amount, TaskId, U256};
use wallet::Wallet;

use crate::failure::{Failure, Outcome};
use crate::money::{Purse, chain_failure};
use crate::ui::Ui;

/// What the demo's task pays, in the coin's smallest unit: a hundredth of a coin.
pub(super) const BUDGET: &str = "10000000000000000";
/// What the agent stakes: a coin.
const STAKE: &str = "1000000000000000000";
/// What requester and provider have at first: ten coins.
const COINS: u64 = 10_000_000_000_000_000_000;
/// How long the deployment may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A chain with the contract.
pub(super) struct Money {
    chain: Chain,
    requester: Wallet,
    provider: Address,
    purse: Purse,
    /// Ends with this.
    anvil: Anvil,
}

/// What both have.
pub(super) struct Balances {
    requester: Amount,
    /// What the contract holds for the provider to take out counts, and its stake.
    provider: Amount,
}

impl Money {
    /// Starts a chain, deploys the contract, and gives requester and provider coins. `None` where there is no anvil; it says so.
    ///
    /// # Errors
    /// The chain does not start, or the contract cannot be deployed.
    pub(super) async fn start(folder: &Path, ui: &Ui) -> Outcome<Option<Self>> {
        if Anvil::find().is_none() {
            ui.say("settlement is off, and no money moves: put Foundry's anvil on the PATH, or name it in ZORAI_ANVIL");
            return Ok(None);
        }
        let anvil = Anvil::start_with(&["--block-time", "1"]).await.map_err(Failure::failed)?;
        let tls = daemon::tls::client_config(None).map_err(Failure::failed)?;
        let rpc = Rpc::new(RpcConfig::new(vec![anvil.url()], None), &tls).map_err(Failure::failed)?;
        let config = OutboxConfig { poll: Duration::from_millis(100), ..OutboxConfig::default() };
        let deployer = Wallet::from_hex(KEYS[0]).map_err(Failure::failed)?;
        let home = folder.join("chain");
        let outbox =
            Outbox::open(&home, rpc.clone(), deployer, config.clone()).await.map_err(Failure::failed)?;
        let chain = tx::deploy(&outbox, "deploy", PERMIT2, PATIENCE).await.map_err(Failure::failed)?.chain;
        let requester = Wallet::random();
        let key = read_secret_file(&folder.join("provider.key")).map_err(Failure::failed)?;
        let provider = Wallet::from_hex(key.expose()).map_err(Failure::failed)?.address();
        for account in [requester.address(), provider] {
            let coins = json!([account, format!("{COINS:#x}")]);
            rpc.request::<serde_json::Value>("anvil_setBalance", coins).await.map_err(Failure::failed)?;
        }
        let purse = Purse::new(chain.clone(), &requester, config, home);
        ui.say(format_args!("the money is in the contract {} on a chain of its own", chain.escrow()));
        Ok(Some(Self { chain, requester, provider, purse, anvil }))
    }

    /// What the relay has to be told.
    pub(super) fn relay_flags(&self) -> Vec<String> {
        let mut flags = self.flags();
        flags.extend(["--chain-poll-ms", "100"].map(str::to_owned));
        flags
    }

    /// What the agent has to be told.
    pub(super) fn agent_flags(&self) -> Vec<String> {
        let mut flags = self.flags();
        let arbiter = self.arbiter().to_string();
        flags.extend(["--stake", STAKE, "--accept-arbiter", &arbiter].map(str::to_owned));
        flags
    }

    fn flags(&self) -> Vec<String> {
        let domain = self.chain.domain();
        let escrow = format!("{}:{}", domain.chain_id, domain.verifying_contract);
        let url = self.anvil.url().to_string();
        ["--escrow", &escrow, "--rpc-url", &url, "--confirmations", "1"].map(str::to_owned).into()
    }

    /// Who publishes.
    pub(super) fn requester(&self) -> &Wallet {
        &self.requester
    }

    /// Who would resolve a dispute.
    pub(super) fn arbiter(&self) -> Address {
        ACCOUNTS[3]
    }

    /// What pays.
    pub(super) fn purse(&self) -> &Purse {
        &self.purse
    }

    /// What both have now.
    pub(super) async fn balances(&self) -> Outcome<Balances> {
        let of = async |account| -> Outcome<U256> {
            let coin = Address::ZERO;
            let own = self.chain.balance(coin, account).await.map_err(chain_failure)?;
            let credit = self.chain.withdrawable(coin, account).await.map_err(chain_failure)?;
            let stake = self.chain.stake(coin, account).await.map_err(chain_failure)?;
            Ok(own.0 + credit.0 + stake.free.0 + stake.leaving.0)
        };
        let requester = Amount(of(self.requester.address()).await?);
        Ok(Balances { requester, provider: Amount(of(self.provider).await?) })
    }

    /// Says each transaction of a task, and what both had and have.
    pub(super) async fn say(&self, id: TaskId, before: &Balances, ui: &Ui) -> Outcome {
        let head = self.chain.head().await.map_err(chain_failure)?;
        for log in self.chain.logs(0, head.number, Some(id)).await.map_err(chain_failure)? {
            ui.say(format_args!("  {:<8} transaction {} in block {}", word(&log.event), log.tx, log.block));
        }
        let after = self.balances().await?;
        let line = |who: &str, before: Amount, after: Amount| {
            ui.say(format_args!("  {who:<9} had {before}, has {after} (gas included)"));
        };
        line("requester", before.requester, after.requester);
        line("provider", before.provider, after.provider);
        Ok(())
    }
}

/// What a transaction did to the task.
fn word(change: &Change) -> &'static str {
    match change {
        Change::TaskFunded(_) => "funded",
        Change::TaskAccepted(_) => "accepted",
        Change::TaskFailed(_) => "failed",
        Change::LeaseLapsed(_) => "lapsed",
        Change::TaskProven(_) => "proven",
        Change::TaskPaid(_) => "paid",
        Change::TaskDisputed(_) => "disputed",
        Change::TaskResolved(_) => "resolved",
        Change::TaskTimedOut(_) => "timed out",
        Change::TaskRefunded(_) => "refunded",
        Change::TaskCancelled(_) => "cancelled",
        Change::Staked(_) | Change::UnstakeAnnounced(_) | Change::Withdrawn(_) => "moved",
        _ => "other",
    }
}
