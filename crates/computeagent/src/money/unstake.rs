//! `compute-agent unstake`: takes the provider's stake out of the contract, while the agent is stopped. The contract wants it announced
//! a day before; this is one command for both steps, which does the next one.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use daemon::config_file::{self, ConfigError};
use escrow::abi::ZORAIComputeEscrowEvents as Events;
use escrow::tx::{Mined, Outbox, OutboxError};
use escrow::{Call, Chain, ChainError};
use serde::Serialize;
use taskmarket::{Address, Amount, Timestamp, eip55};

use super::{BookError, Money, MoneyError};
use crate::args::{Args, ArgsError};
use crate::config::Config;
use crate::home::{Home, HomeError};

/// How long a transaction is waited for. The same command goes on waiting.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the transactions here begin with.
const UNSTAKE: &str = "unstake:";
const WITHDRAW: &str = "withdraw:";

/// Takes the stake out of the escrow contract, in two steps a day apart.
///
/// The first call announces it: from then on the agent takes no task for which that stake would be needed. A call once the day is over
/// pays it out, together with what tasks have paid; an agent that runs again by then pays it out by itself. Stop the agent
/// before, for a moment; it goes on with its attempts when it is started again.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "compute-agent unstake",
    after_help = "It takes the agent's own flags, variables and configuration file: relay, key, data folder, --escrow, --rpc-url, \
                  --stake-token.\n\n\
                  Example:\n  compute-agent unstake --config /etc/zorai/agent.toml         (all of it)\n  \
                  compute-agent unstake 1000000 --config /etc/zorai/agent.toml\n  \
                  compute-agent unstake 0 --config /etc/zorai/agent.toml       (takes the announcement back)"
)]
pub struct UnstakeArgs {
    /// How much is to leave, in the token's smallest unit; 0 takes back what was announced [default: all that no task holds].
    #[arg(value_name = "AMOUNT")]
    pub amount: Option<Amount>,

    /// As JSON.
    #[arg(long)]
    pub json: bool,

    /// The agent's own.
    #[command(flatten)]
    pub agent: Args,
}

/// Why no stake is taken out.
#[derive(Debug, thiserror::Error)]
pub enum UnstakeError {
    /// The agent's flags.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// They name no contract.
    #[error(
        "no escrow contract is named\nhint: give the agent's own flags: --escrow, --rpc-url and, for a token, --stake-token"
    )]
    NoEscrow,
    /// The agent is at work.
    #[error(
        "the agent runs on this data folder\nhint: stop it for a moment; what was announced before, it pays out by itself when the day is over"
    )]
    Running,
    /// The data folder.
    #[error(transparent)]
    Home(HomeError),
    /// The certificates to trust.
    #[error(transparent)]
    Tls(#[from] daemon::tls::TlsError),
    /// The book or the outbox.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// More than there is.
    #[error("{asked} are asked for, and {free} are free of tasks, in the token's smallest unit")]
    TooMuch {
        /// What is asked for.
        asked: Amount,
        /// What no task holds.
        free: Amount,
    },
    /// There is none.
    #[error("there is no stake that no task holds")]
    Nothing,
    /// It cannot be written out.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

impl UnstakeError {
    /// Whether the command line is to blame.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Args(_) | Self::NoEscrow | Self::TooMuch { .. } => true,
            Self::Running
            | Self::Home(_)
            | Self::Tls(_)
            | Self::Money(_)
            | Self::Chain(_)
            | Self::Nothing
            | Self::Json(_) => false,
        }
    }
}

impl From<OutboxError> for UnstakeError {
    fn from(error: OutboxError) -> Self {
        Self::Money(error.into())
    }
}

impl From<BookError> for UnstakeError {
    fn from(error: BookError) -> Self {
        Self::Money(error.into())
    }
}

impl From<HomeError> for UnstakeError {
    fn from(error: HomeError) -> Self {
        match error {
            HomeError::InUse { .. } => Self::Running,
            HomeError::Io { .. } | HomeError::NodeId { .. } => Self::Home(error),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Unstaked {
    /// Of which token; zero is the native coin.
    #[serde(with = "eip55")]
    pub token: Address,
    /// What was paid out, with what tasks have paid.
    pub withdrawn: Amount,
    /// What is announced to leave.
    pub leaving: Amount,
    /// From when on it can.
    pub leaves_at: Timestamp,
    /// What stays.
    pub stays: Amount,
}

impl UnstakeArgs {
    /// Reads a command line with the agent's variables and configuration file.
    ///
    /// # Errors
    /// Any [`ConfigError`]; clap's own know how to end the program.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigError> {
        let matches = config_file::matches(&Self::command(), line, &["provider-key"])?;
        Ok(Self::from_arg_matches(&matches)?)
    }

    /// Does the next step; the answer is to be printed.
    ///
    /// # Errors
    /// [`UnstakeError`]
    pub async fn run(self, variable: impl Fn(&str) -> Option<String>) -> Result<String, UnstakeError> {
        let config = self.agent.into_config(variable)?;
        let wanted = config.escrow.as_ref().and_then(|escrow| escrow.stake).map(|(_, amount)| amount);
        let done = unstake(&config, self.amount).await?;
        if self.json {
            return Ok(serde_json::to_string_pretty(&done)? + "\n");
        }
        Ok(text(&done, wanted))
    }
}

/// Does the next step: pays out what was announced a day ago, else announces.
///
/// # Errors
/// [`UnstakeError`]
pub async fn unstake(config: &Config, amount: Option<Amount>) -> Result<Unstaked, UnstakeError> {
    let escrow = config.escrow.clone().ok_or(UnstakeError::NoEscrow)?;
    let token = escrow.stake.map_or(Address::ZERO, |(token, _)| token);
    let _home = Home::open(&config.data)?;
    let tls = daemon::tls::client_config(config.ca_file.as_deref())?;
    let money = Money::open(escrow, &config.data, &tls, config.wallet.clone())?;
    let (chain, outbox) = (money.chain().await?, money.outbox().await?);
    finish(outbox).await?;
    let provider = money.wallet.address();
    let stake = chain.stake(token, provider).await?;
    let is_due = stake.leaving != Amount::ZERO && chain.head().await?.time >= stake.leaves_at;
    let calls = chain.calls();
    let mut withdrawn = Amount::ZERO;
    match amount {
        Some(Amount::ZERO) if stake.leaving == Amount::ZERO => {}
        Some(Amount::ZERO) => {
            send(&money, outbox, UNSTAKE, calls.unstake(token, Amount::ZERO)).await?;
        }
        Some(_) | None if is_due => {
            let mined = send(&money, outbox, WITHDRAW, calls.withdraw(token, provider)).await?;
            withdrawn = paid_out(chain, &mined).await?;
        }
        // It is announced, and its day is not over: to announce it again would begin the day anew.
        None if stake.leaving != Amount::ZERO => {}
        Some(asked) if asked == stake.leaving => {}
        Some(asked) if asked > stake.free => {
            return Err(UnstakeError::TooMuch { asked, free: stake.free });
        }
        None if stake.free == Amount::ZERO => return Err(UnstakeError::Nothing),
        Some(_) | None => {
            let leaving = amount.unwrap_or(stake.free);
            send(&money, outbox, UNSTAKE, calls.unstake(token, leaving)).await?;
        }
    }
    let stake = chain.stake(token, provider).await?;
    let (leaving, leaves_at) = (stake.leaving, stake.leaves_at);
    Ok(Unstaked { token, withdrawn, leaving, leaves_at, stays: stake.reliable() })
}

/// Waits for what was begun before: after a crash nothing is done twice.
async fn finish(outbox: &Outbox) -> Result<(), UnstakeError> {
    for entry in outbox.unfinished().await? {
        if entry.purpose.starts_with(UNSTAKE) || entry.purpose.starts_with(WITHDRAW) {
            outbox.wait(&entry.purpose, PATIENCE).await?;
        }
    }
    Ok(())
}

async fn send(money: &Money, outbox: &Outbox, verb: &str, call: Call) -> Result<Mined, UnstakeError> {
    let purpose = format!("{verb}{}", money.book.next().await?);
    // The agent counts what it cost when it runs again.
    money.book.sent(purpose.clone()).await?;
    Ok(outbox.send(&purpose, call, PATIENCE).await?)
}

async fn paid_out(chain: &Chain, mined: &Mined) -> Result<Amount, UnstakeError> {
    let logs = chain.transaction_logs(mined.tx).await?.unwrap_or_default();
    let amount = logs.into_iter().find_map(|log| {
        if let Events::Withdrawn(event) = log.event { Some(Amount(event.amount)) } else { None }
    });
    Ok(amount.unwrap_or_default())
}

fn text(done: &Unstaked, wanted: Option<Amount>) -> String {
    let mut text = String::new();
    let name = if done.token.is_zero() { "the native coin".to_owned() } else { done.token.to_string() };
    // Writing to a string does not fail.
    if done.withdrawn != Amount::ZERO {
        let _ = writeln!(text, "withdrawn  {}", done.withdrawn);
    }
    if done.leaving != Amount::ZERO {
        let _ =
            writeln!(text, "leaving    {}, from {} on: call this again then", done.leaving, done.leaves_at);
    }
    let _ = writeln!(text, "stays      {}", done.stays);
    if wanted.is_some_and(|wanted| wanted > done.stays) {
        let _ = writeln!(text, "lower --stake, or the agent puts it in again at its next start");
    }
    let _ = writeln!(text, "amounts in the smallest unit of {name}");
    text
}
