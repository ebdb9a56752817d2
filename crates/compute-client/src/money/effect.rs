//! What transactions are to bring about, by the chain's own record of a task: a transaction that was final may be gone, and somebody else
//! may have done the same.

use std::time::Duration;

use escrow::tx::{Mined, Outbox};
use escrow::{At, Call, ChainError, Status};
use taskmarket::{Address, Amount, TaskId};
use tokio::time::Instant;

use crate::failure::{Failure, Outcome};
use crate::money::tokens::{allow, forsake, pay_in};
use crate::money::{PATIENCE, Purse, chain_failure, is_under_way, outbox_failure};
use crate::ui::Ui;

/// So often is a transaction of one purpose made in one command.
const ROUNDS: usize = 3;
/// How long the newest block may be without what a transaction did before that counts as missing: endpoints may be behind one another.
const LAG: Duration = Duration::from_secs(10);
/// How long the chain may stay out of reach before waiting for it is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// A transaction that moves a task's money.
#[derive(Debug, Clone)]
pub(crate) struct Move<'a> {
    /// Whose money it is.
    pub(crate) id: TaskId,
    /// What the outbox knows it by.
    pub(crate) purpose: &'a str,
    /// What it says.
    pub(crate) call: Call,
    /// What it takes out of the account, in which token.
    pub(crate) takes: (Address, Amount),
    /// Whether the money is where it moves it, or has been.
    pub(crate) there: fn(Status) -> bool,
}

/// Takes nothing out of the account.
pub(crate) const NOTHING: (Address, Amount) = (Address::ZERO, Amount::ZERO);

/// Moves a task's money, once, and makes sure by the chain's record that it is there, for as many blocks as make it final. Gives the
/// transaction that did it; `None` where it was there before, or somebody else came first. A transaction that is gone without its
/// effect, as after a reorganisation that gave its nonce to another, is made anew.
///
/// # Errors
/// It cannot be sent, or what is sent has no effect.
pub(crate) async fn bring_about(
    purse: &Purse,
    outbox: &Outbox,
    step: Move<'_>,
    ui: &Ui,
) -> Outcome<Option<Mined>> {
    let Move { id, purpose, call, takes, there } = step;
    let is_there = async || -> Outcome<bool> {
        let record = purse.chain.record(id).await.map_err(chain_failure)?;
        Ok(there(record.status) && holds(purse, id, there, ui).await?)
    };
    if !is_under_way(outbox, purpose).await? && is_there().await? {
        // Another account may have paid what this one was about to.
        forsake(purse, outbox, takes, purpose, ui).await?;
        return Ok(None);
    }
    let mut rounds = 1;
    loop {
        let mined = match pay_in(purse, outbox, purpose, takes, call.clone(), ui).await {
            Ok(mined) => mined,
            // Somebody else may have come first.
            Err(failure) => {
                let is_over = !is_under_way(outbox, purpose).await?;
                return if is_over && is_there().await.unwrap_or(false) { Ok(None) } else { Err(failure) };
            }
        };
        if holds(purse, id, there, ui).await? {
            return Ok(Some(mined));
        }
        if rounds == ROUNDS {
            return Err(Failure::failed(format_args!("{} was final, and has no effect", mined.tx))
                .hint("check --rpc-url, and give a higher --confirmations"));
        }
        rounds += 1;
        ui.warn(format_args!("a reorganisation removed {}, whose nonce is used: sending another", mined.tx));
        allow(purse, outbox, takes, purpose, ui).await?;
        outbox.renew(purpose, call.clone()).await.map_err(outbox_failure)?;
    }
}

/// Waits until a task's money has been there for as many blocks as make it final. `false` where the newest block is without it.
///
/// # Errors
/// It takes too long, or the chain stays out of reach.
pub(crate) async fn holds(purse: &Purse, id: TaskId, there: fn(Status) -> bool, ui: &Ui) -> Outcome<bool> {
    let started = Instant::now();
    let mut missing = None;
    let mut said = false;
    loop {
        match look(purse, id, there).await {
            Ok(Seen::Final) => return Ok(true),
            Ok(Seen::New) if started.elapsed() >= PATIENCE => {
                return Err(Failure::failed(format_args!("what happened to task {id} is not final yet"))
                    .hint("the same command goes on waiting"));
            }
            Ok(Seen::New) => {
                missing = None;
                if !std::mem::replace(&mut said, true) {
                    let blocks = purse.config.confirmations;
                    ui.say(format_args!("the chain has it; waiting until it is {blocks} blocks deep"));
                }
            }
            Ok(Seen::Missing) => {
                if missing.get_or_insert_with(Instant::now).elapsed() >= LAG {
                    return Ok(false);
                }
            }
            Err(error) if started.elapsed() >= GIVE_UP_AFTER => return Err(chain_failure(error)),
            Err(_) => {}
        }
        tokio::time::sleep(purse.config.poll).await;
    }
}

enum Seen {
    Missing,
    New,
    Final,
}

async fn look(purse: &Purse, id: TaskId, there: fn(Status) -> bool) -> Result<Seen, ChainError> {
    let chain = &purse.chain;
    let head = chain.head().await?.number;
    if !there(chain.record(id).await?.status) {
        return Ok(Seen::Missing);
    }
    let Some(last_final) = (head + 1).checked_sub(purse.config.confirmations) else { return Ok(Seen::New) };
    if last_final == head {
        return Ok(Seen::Final);
    }
    match chain.record_at(id, At::Block(last_final)).await {
        Ok(record) if there(record.status) => Ok(Seen::Final),
        // The contract itself may be newer.
        Ok(_) | Err(ChainError::Malformed { .. }) => Ok(Seen::New),
        Err(error) => Err(error),
    }
}
