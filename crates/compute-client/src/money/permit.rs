//! Paying by a signature at Permit2, in this program's transaction or in another account's.

use std::path::Path;
use std::time::Duration;

use daemon::private_file;
use escrow::{Call, Chain, Permit, Status};
use serde::{Deserialize, Serialize};
use taskmarket::{Address, Domain, Task, TaskId, U256};

use crate::commands::run::random_salt;
use crate::failure::{Context as _, Failure, Outcome};
use crate::money::effect::holds;
use crate::money::fund::say_funded;
use crate::money::{Coins, Purse, chain_failure, is_paid};
use crate::ui::Ui;

/// How often the chain is asked whether another account has paid.
const LOOK: Duration = Duration::from_secs(1);
/// The largest file with a transaction that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A transaction for another account to send, in the words of JSON-RPC. It holds no reference to content: the contract is given
/// their hashes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handed {
    chain_id: u64,
    #[serde(flatten)]
    pub(crate) call: Call,
}

impl Handed {
    /// A call on the chain of this domain.
    pub(crate) fn new(domain: Domain, call: Call) -> Self {
        Self { chain_id: domain.chain_id, call }
    }

    /// Reads a file, which may be anybody's.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        if std::fs::metadata(path).or_usage(path.display())?.len() > MAX_FILE_BYTES {
            return Err(Failure::usage(format_args!("{} is too large for a transaction", path.display())));
        }
        let text = std::fs::read(path).or_usage(path.display())?;
        serde_json::from_slice(&text).or_usage(format_args!("{} holds no transaction", path.display()))
    }

    /// The contract that it calls, and on which chain.
    pub(crate) fn domain(&self) -> Outcome<Domain> {
        let to = self.call.to.ok_or_else(|| Failure::usage("the transaction calls no contract"))?;
        Ok(Domain { chain_id: self.chain_id, verifying_contract: to })
    }
}

/// Makes sure that Permit2 may take the budget.
///
/// # Errors
/// Exit code 2 for the native coin, which Permit2 does not move; 1 where Permit2 may take too little.
pub(super) async fn check_allowed(purse: &Purse, task: &Task) -> Outcome {
    let permit2 = permit2(&purse.chain).await?;
    let allowed = purse.chain.allowance(task.token, purse.account(), permit2).await.map_err(chain_failure)?;
    if allowed >= task.budget {
        return Ok(());
    }
    let coins = Coins::of(&purse.chain, task.token).await?;
    Err(Failure::failed(format_args!(
        "Permit2 at {permit2} may take {} of {}, and the budget is {}",
        coins.show(allowed),
        purse.account(),
        coins.show(task.budget)
    ))
    .hint(format_args!("zorai-compute wallet permit2 AMOUNT --token {} lets it take more", task.token)))
}

/// The Permit2 that the contract uses.
pub(crate) async fn permit2(chain: &Chain) -> Outcome<Address> {
    chain.permit2().await.map_err(chain_failure)
}

/// The transaction that pays a task by this account's signature. The signature is for this task, and counts as long as it can be
/// paid.
pub(super) async fn call(purse: &Purse, task: &Task) -> Outcome<Call> {
    let permit2 = permit2(&purse.chain).await?;
    let nonce = U256::from_be_bytes(random_salt()?.0.0);
    let permit = Permit { payer: purse.account(), nonce, deadline: task.deadline };
    let digest = permit.digest(permit2, &purse.chain.domain(), task);
    let signature = purse.wallet.sign_permit_digest(digest).map_err(Failure::failed)?;
    Ok(purse.chain.calls().fund_with_permit(task, &permit, &signature))
}

/// Writes the transaction for another account to send, and waits until the chain has the money.
pub(super) async fn hand_over(purse: &Purse, task: &Task, id: TaskId, file: &Path, ui: &Ui) -> Outcome {
    let handed = Handed::new(purse.chain.domain(), call(purse, task).await?);
    let mut text = serde_json::to_vec_pretty(&handed).map_err(Failure::failed)?;
    text.push(b'\n');
    // Whole from its first moment: whoever sends it may be waiting for it.
    private_file::create(file, &text).or_failed(file.display())?;
    ui.say(format_args!(
        "task {id} waits for its money; another account pays the gas: zorai-compute escrow fund {}",
        file.display()
    ));
    until_funded(purse, task, id, ui).await
}

/// Waits until the chain has the money that another account sends.
pub(crate) async fn until_funded(purse: &Purse, task: &Task, id: TaskId, ui: &Ui) -> Outcome {
    loop {
        let read = async {
            let head = purse.chain.head().await?;
            Ok((head.time, purse.chain.record(id).await?.status))
        };
        match read.await {
            // Another account sends it again, should it be taken back.
            Ok((_, status)) if is_paid(status) => {
                if holds(purse, id, is_paid, ui).await? {
                    break;
                }
            }
            Ok((time, Status::None)) if time < task.deadline => {}
            Ok((_, Status::None)) => {
                return Err(Failure::failed("nobody paid before the deadline: nothing was published"));
            }
            Ok((_, status)) => {
                return Err(Failure::failed(format_args!("the task's money is {}", status.as_str())));
            }
            // It is asked again: what was handed over may be on its way.
            Err(error) => ui.detail(chain_failure(error).message()),
        }
        tokio::time::sleep(LOOK).await;
    }
    say_funded(None, ui);
    Ok(())
}
