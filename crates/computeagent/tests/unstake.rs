//! Taking the stake out of the contract: announced by a command while the agent is stopped, paid out a day later by the command or by
//! the agent.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::time::Duration;

use computeagent::{Config, UnstakeError, Unstaked, unstake};
use http::StatusCode;
use support::chain::{STAKE, Settled};
use support::*;
use taskmarket::{Address, Amount, U256};

const DAY: u64 = 86_400;

fn amount(units: u64) -> Amount {
    Amount(U256::from(units))
}

/// Does the next step, once the agent that was stopped has left its folder.
async fn next(config: &Config, amount: Option<Amount>) -> Result<Unstaked, UnstakeError> {
    soon("the folder", async {
        loop {
            match unstake(config, amount).await {
                Err(UnstakeError::Running) => tokio::time::sleep(Duration::from_millis(10)).await,
                done => return done,
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_stake_is_announced_once_and_paid_out_a_day_later() {
    let Some(mut settled) = Settled::new().await else { return };
    let config = settled.world.config.clone();
    let agent = settled.world.start();
    let (_, session) = settled.world.connected().await;
    settled.stake_is(STAKE).await;
    let running = unstake(&config, None).await.unwrap_err();
    assert!(matches!(running, UnstakeError::Running), "{running}");
    // In this order: an agent whose session ends connects once more.
    agent.stop().await.unwrap();
    drop(session);

    let too_much = next(&config, Some(amount(STAKE + 1))).await.unwrap_err();
    assert!(too_much.is_usage(), "{too_much}");
    let sent = settled.sent().await;
    let done = next(&config, Some(amount(STAKE - 500))).await.unwrap();
    assert_eq!((done.withdrawn, done.leaving, done.stays), (Amount::ZERO, amount(STAKE - 500), amount(500)));
    for asked in [None, Some(amount(STAKE - 500))] {
        assert_eq!(next(&config, asked).await.unwrap(), done, "its day does not begin anew");
    }
    assert_eq!(settled.sent().await, sent + 1);
    let back = next(&config, Some(Amount::ZERO)).await.unwrap();
    assert_eq!((back.leaving, back.stays), (Amount::ZERO, amount(STAKE)));

    // What is announced backs no task, and what stays of it is not enough.
    let done = next(&config, Some(amount(STAKE - 500))).await.unwrap();
    let agent = settled.world.start_again().await;
    let (_, session) = settled.world.connected().await;
    let offered = settled.funded(1).await;
    let (status, body) = offer(&session, &offered).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    agent.stop().await.unwrap();
    drop(session);

    settled.pass(DAY).await;
    assert!(settled.chain.head().await.unwrap().time >= done.leaves_at);
    let out = next(&config, None).await.unwrap();
    assert_eq!((out.withdrawn, out.leaving, out.stays), (amount(STAKE - 500), Amount::ZERO, amount(500)));
    let all = next(&config, None).await.unwrap();
    assert_eq!((all.leaving, all.stays), (amount(500), Amount::ZERO));
}

#[tokio::test]
async fn a_running_agent_pays_announced_stake_out() {
    let Some(mut settled) = Settled::new().await else { return };
    // Worth its gas many times over.
    let coin = Amount(U256::from(10).pow(U256::from(18)));
    settled.escrow().stake = Some((Address::ZERO, coin));
    settled.escrow().timing.withdraw_every_secs = 1;
    let config = settled.world.config.clone();
    let agent = settled.world.start();
    settled.world.connected().await;
    let provider = settled.provider();
    let staked = async |wanted: Amount| {
        soon("the stake", async {
            while settled.chain.stake(Address::ZERO, provider).await.unwrap().free != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    staked(coin).await;
    agent.stop().await.unwrap();
    let done = next(&config, None).await.unwrap();
    assert_eq!((done.leaving, done.stays), (coin, Amount::ZERO));
    let agent = settled.world.start_again().await;
    settled.pass(DAY).await;
    staked(Amount::ZERO).await;
    let escrow = settled.chain.escrow();
    assert_eq!(settled.chain.balance(Address::ZERO, escrow).await.unwrap(), Amount::ZERO);
    agent.stop().await.unwrap();
}
