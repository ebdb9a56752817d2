//! Publishing a task: it is signed and kept, its budget paid in where it has one, and it is handed to the relay.

use rpc::error::ErrorCode;
use rpc::tasks::PublishTask;
use taskmarket::{Domain, Signed, Task, TaskId};
use wallet::Wallet;

use crate::content::Content;
use crate::failure::{Exit, Failure, Outcome};
use crate::money::{self, Draft, Funding, Note, Paid, Purse, Unpublished};
use crate::relay::Relay;
use crate::ui::Ui;

/// How a task is paid.
pub(crate) struct Payment<'a> {
    /// By whom.
    pub(crate) purse: &'a Purse,
    /// In which way.
    pub(crate) funding: &'a Funding,
    /// How many seconds from the command the deadline is, where it was given so.
    pub(crate) deadline_in: Option<u64>,
}

/// Uploads what the relay has not got, signs the task, pays its budget in where it is paid, and publishes it.
pub(crate) async fn publish(
    relay: &Relay,
    wallet: &Wallet,
    task: &Task,
    contents: &[&Content],
    payment: Option<Payment<'_>>,
    ui: &Ui,
) -> Outcome<TaskId> {
    Content::upload(contents, relay, ui).await?;
    let domain = payment.as_ref().map_or(Domain::UNSETTLED, |payment| payment.purse.chain.domain());
    let signed = wallet.sign(task, &domain).map_err(Failure::failed)?;
    let id = signed.message.id(&domain);
    let Some(Payment { purse, funding, deadline_in }) = payment else {
        hand_in(relay, signed, domain).await?;
        return Ok(id);
    };
    // Both are kept before any money moves, so that a command that ends in between is made good by the next.
    money::keep(&purse.home, &signed, domain).await?;
    let note = Note { handed: matches!(funding, Funding::Handed(_)), deadline_in };
    let draft = Draft::begin(purse, id, note).await?;
    ui.say(format_args!("paying for task {id}"));
    let work = async {
        money::fund(purse, task, id, funding, ui).await?;
        hand_in(relay, signed, domain).await
    };
    finish(work, purse, task, draft).await?;
    Ok(id)
}

/// Goes on with a task that was signed before, from where that stopped, and publishes it. Where another account was to pay, this call's
/// way to pay counts, if it has one.
pub(crate) async fn go_on(
    relay: &Relay,
    contents: &[&Content],
    purse: &Purse,
    unpublished: Unpublished,
    funding: Option<&Funding>,
    ui: &Ui,
) -> Outcome<TaskId> {
    Content::upload(contents, relay, ui).await?;
    let Unpublished { signed, draft, paid } = unpublished;
    let (task, domain) = (signed.message.clone(), purse.chain.domain());
    let id = task.id(&domain);
    let work = async {
        match paid {
            Paid::Whole => money::until_paid_for_good(purse, id, ui).await?,
            // What is kept under its purpose goes on, whichever way it pays.
            Paid::OnItsWay => money::fund(purse, &task, id, &Funding::Own, ui).await?,
            // What was handed over may be lost; should both be sent, the contract takes one.
            Paid::ByAnother => match funding {
                Some(funding) => money::fund(purse, &task, id, funding, ui).await?,
                None => money::until_funded(purse, &task, id, ui).await?,
            },
        }
        match relay.task(id).await {
            Err(failure) if failure.code() == Some(ErrorCode::NotFound.as_str()) => {
                hand_in(relay, signed, domain).await
            }
            known => known.map(drop),
        }
    };
    finish(work, purse, &task, draft).await?;
    Ok(id)
}

/// Pays and publishes; what fails or is broken off says how to go on.
async fn finish(work: impl Future<Output = Outcome>, purse: &Purse, task: &Task, draft: Draft) -> Outcome {
    let done = tokio::select! {
        done = Box::pin(work) => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "stopped before the task was published")),
    };
    match done {
        Ok(()) => draft.end().await,
        Err(failure) => Err(draft.advise(purse, task, failure).await),
    }
}

/// Hands a signed task to the relay.
pub(crate) async fn hand_in(relay: &Relay, signed: Signed<Task>, domain: Domain) -> Outcome {
    let id = signed.message.id(&domain);
    let Signed { message, signature } = signed;
    let verifying_contract = domain.verifying_contract;
    let body = PublishTask { task: message, signature, verifying_contract, callback_url: None };
    let view = relay.publish(&body).await?;
    if view.task_id == id {
        return Ok(());
    }
    Err(Failure::unverified(format_args!(
        "the relay calls the task {}, but its digest is {id}",
        view.task_id
    )))
}
