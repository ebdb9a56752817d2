//! Paying in a token: the contract is let take an amount before, and no longer than something needs it.

use escrow::tx::{Mined, Outbox, State};
use escrow::{At, Call, ChainError};
use taskmarket::{Address, Amount};

use crate::failure::Outcome;
use crate::money::{Coins, Purse, chain_failure, is_done, is_under_way, outbox_failure, send};
use crate::ui::Ui;

/// Sends what takes an amount of a token out of the account, and lets the contract take it before, where it may not yet. What is done
/// is the answer, and nothing is sent again, unless a reorganisation took it back and left its nonce free.
pub(crate) async fn pay_in(
    purse: &Purse,
    outbox: &Outbox,
    purpose: &str,
    takes: (Address, Amount),
    call: Call,
    ui: &Ui,
) -> Outcome<Mined> {
    recheck(outbox, purpose).await?;
    let mut is_allowed = false;
    loop {
        match state(outbox, purpose).await? {
            // It has used its allowance up.
            Some(State::Done(mined)) => return Ok(mined),
            None | Some(State::Failed(_)) => {
                allow(purse, outbox, takes, purpose, ui).await?;
                is_allowed = true;
            }
            // It had its allowance before, and may have used it up.
            Some(State::Planned { .. } | State::Signed(_) | State::Sent(_) | State::Mined { .. }) => {}
        }
        let failure = match send(outbox, purpose, call.clone(), ui).await {
            Ok(mined) => return Ok(mined),
            Err(failure) => failure,
        };
        let has_allowance =
            async || -> Outcome<bool> { Ok(takes.0.is_zero() || allowed(purse, takes.0).await? >= takes.1) };
        match state(outbox, purpose).await? {
            // A reorganisation, or another command, took the allowance that it had.
            Some(State::Failed(_)) if !is_allowed && !has_allowance().await? => {}
            Some(State::Failed(_)) => {
                forsake(purse, outbox, takes, purpose, ui).await?;
                return Err(failure);
            }
            // Withdrawn, for want of coins.
            None if !takes.0.is_zero() && has_allowance().await? => {
                let coins = Coins::of(&purse.chain, takes.0).await?;
                return Err(failure.hint(format_args!(
                    "the contract may take {}, which this needs when it is given again",
                    coins.show(takes.1)
                )));
            }
            None | Some(_) => return Err(failure),
        }
    }
}

/// Puts what a reorganisation took back, after it was done, on its way again as it was signed; first what has the lowest nonce.
pub(super) async fn recheck(outbox: &Outbox, purpose: &str) -> Outcome {
    let allowance = allowance(purpose);
    for purpose in [&none(&allowance), &allowance, purpose] {
        if is_done(outbox, purpose).await? {
            outbox.recheck(purpose).await.map_err(outbox_failure)?;
        }
    }
    Ok(())
}

/// Lets the contract take an amount of a token, where it may not yet. The chain's coin is sent, not taken.
pub(super) async fn allow(
    purse: &Purse,
    outbox: &Outbox,
    (token, amount): (Address, Amount),
    purpose: &str,
    ui: &Ui,
) -> Outcome {
    if token.is_zero() {
        return Ok(());
    }
    let purpose = allowance(purpose);
    let call = Call::allow(token, purse.chain.escrow(), amount);
    if is_under_way(outbox, &purpose).await? {
        send(outbox, &purpose, call.clone(), ui).await?;
    }
    let now = allowed(purse, token).await?;
    if now >= amount {
        return Ok(());
    }
    // Some tokens change an allowance only from zero.
    let refused = purse.chain.simulate(&call, purse.account(), At::Latest).await;
    if now != Amount::ZERO && matches!(refused, Err(ChainError::Reverted(_))) {
        forbid(purse, outbox, token, &purpose, ui).await?;
    }
    send_anew(outbox, &purpose, call, ui).await
}

/// Takes back what the contract was let take for a purpose that it serves no more.
pub(super) async fn forsake(
    purse: &Purse,
    outbox: &Outbox,
    (token, amount): (Address, Amount),
    purpose: &str,
    ui: &Ui,
) -> Outcome {
    let purpose = allowance(purpose);
    if token.is_zero() || !is_done(outbox, &purpose).await? || allowed(purse, token).await? != amount {
        return Ok(());
    }
    if let Err(failure) = forbid(purse, outbox, token, &purpose, ui).await {
        let coins = Coins::of(&purse.chain, token).await?;
        let may = coins.show(amount);
        ui.warn(format_args!("the contract may still take {may} of this account: {}", failure.message()));
    }
    Ok(())
}

async fn forbid(purse: &Purse, outbox: &Outbox, token: Address, allowance: &str, ui: &Ui) -> Outcome {
    let call = Call::allow(token, purse.chain.escrow(), Amount::ZERO);
    send_anew(outbox, &none(allowance), call, ui).await
}

/// Sends what may be used up where it was done before.
async fn send_anew(outbox: &Outbox, purpose: &str, call: Call, ui: &Ui) -> Outcome {
    if outbox.get(purpose).await.map_err(outbox_failure)?.is_some() {
        // What a reorganisation took back is sent again as it was signed.
        outbox.recheck(purpose).await.map_err(outbox_failure)?;
        outbox.renew(purpose, call.clone()).await.map_err(outbox_failure)?;
    }
    send(outbox, purpose, call, ui).await.map(drop)
}

/// How much of the account's token the contract may take.
pub(super) async fn allowed(purse: &Purse, token: Address) -> Outcome<Amount> {
    let (owner, escrow) = (purse.account(), purse.chain.escrow());
    purse.chain.allowance(token, owner, escrow).await.map_err(chain_failure)
}

async fn state(outbox: &Outbox, purpose: &str) -> Outcome<Option<State>> {
    Ok(outbox.get(purpose).await.map_err(outbox_failure)?.map(|entry| entry.state))
}

/// The purpose of what lets the contract take an amount for this one.
pub(super) fn allowance(purpose: &str) -> String {
    format!("allow:{purpose}")
}

/// The purpose of what takes an allowance back.
pub(super) fn none(allowance: &str) -> String {
    format!("none:{allowance}")
}
