//! What people sign about tasks. The signature is what authorises it; no API key is needed.

use std::sync::Arc;

use axum::Json as JsonAnswer;
use axum::extract::State;
use http::StatusCode;
use rpc::error::ErrorCode;
use rpc::tasks::{SignedMutation, TaskView};
use taskmarket::{
    AcceptTask, ApproveResult, CancelTask, ComputeProof, DisputeTask, FailTask, Message, Mutation, Rejection,
    ResolveDispute, Signed, Status, TaskId, TaskRecord, Verified,
};

use super::App;
use super::extract::{Json, MaybeKey, TaskPath};
use super::tasks::{find, view};
use crate::error::{ApiError, MarketError};
use crate::hub::Reservation;
use crate::keys::Caller;

type Answer = Result<(StatusCode, JsonAnswer<TaskView>), ApiError>;

/// Declares the handler of one mutation.
macro_rules! handlers {
    ($($path:literal $name:ident: $message:ident as $variant:ident;)*) => {$(
        #[doc = concat!("`POST /v1/tasks/{id}/", $path, "`")]
        pub(super) async fn $name(
            State(app): State<App>,
            MaybeKey(key): MaybeKey,
            TaskPath(id): TaskPath,
            Json(body): Json<SignedMutation<$message>>,
        ) -> Answer {
            let (awaits_chain, view) = mutate(&app, key.as_ref(), id, body, Mutation::$variant).await?;
            Ok((if awaits_chain { StatusCode::ACCEPTED } else { StatusCode::OK }, JsonAnswer(view)))
        }
    )*};
}

handlers! {
    "cancel" cancel: CancelTask as Cancel;
    "accept" accept: AcceptTask as Accept;
    "fail" fail: FailTask as Fail;
    "proof" proof: ComputeProof as Proof;
    "dispute" dispute: DisputeTask as Dispute;
    "resolve" resolve: ResolveDispute as Resolve;
}

/// `POST /v1/tasks/{id}/approve`. Where the chain has the last word, the task's host is told besides: with the approval in hand it can have
/// itself paid at once.
pub(super) async fn approve(
    State(app): State<App>,
    MaybeKey(key): MaybeKey,
    TaskPath(id): TaskPath,
    Json(body): Json<SignedMutation<ApproveResult>>,
) -> Answer {
    let approval = body.clone();
    let (awaits_chain, view) = mutate(&app, key.as_ref(), id, body, Mutation::Approve).await?;
    if !awaits_chain {
        return Ok((StatusCode::OK, JsonAnswer(view)));
    }
    app.hub.pass_approval(&find(&app, id).await?, &approval);
    Ok((StatusCode::ACCEPTED, JsonAnswer(view)))
}

/// Carries a signed mutation of a task out; answers the task after it, as the holder of this key sees it, and whether the message is right
/// but counts only once the chain says so.
///
/// # Errors
/// There is no such task, the message is not about it, its signature is wrong, or the market refuses it.
pub(super) async fn mutate<M: Message>(
    app: &App,
    key: Option<&Caller>,
    id: TaskId,
    body: SignedMutation<M>,
    wrap: fn(Verified<M>) -> Mutation,
) -> Result<(bool, TaskView), ApiError> {
    let task = find(app, id).await?;
    let mutation = wrap(Signed::from(body).verify(&task.record.domain)?);
    if mutation.task_id() != id {
        let message = format!("mutation.task_id is {}, but the path names {id}", mutation.task_id());
        return Err(ApiError::new(ErrorCode::InvalidField, message).with_param("mutation.task_id"));
    }
    let reserved = match &mutation {
        Mutation::Accept(accept) => reserve(app, &task.record, accept.message())?,
        Mutation::Cancel(_)
        | Mutation::Fail(_)
        | Mutation::Proof(_)
        | Mutation::Approve(_)
        | Mutation::Dispute(_)
        | Mutation::Resolve(_) => None,
    };
    let is_verdict = match &mutation {
        Mutation::Dispute(_) => true,
        Mutation::Cancel(_)
        | Mutation::Accept(_)
        | Mutation::Fail(_)
        | Mutation::Proof(_)
        | Mutation::Approve(_)
        | Mutation::Resolve(_) => false,
    };
    let market = Arc::clone(&app.market);
    let change = async move {
        let changed = market.mutate(mutation, reserved.as_ref().map(Reservation::node_id)).await;
        if let (Some(reserved), Ok(record)) = (reserved, &changed) {
            reserved.taken(record);
        }
        Ok(changed)
    };
    let awaits_chain = match app.finish(change).await? {
        Ok(record) => is_verdict && record.status() == Status::Submitted,
        Err(MarketError::Rejected(Rejection::AwaitingChain)) => true,
        Err(error) => return Err(error.into()),
    };
    Ok((awaits_chain, view(app, &find(app, id).await?, key)))
}

/// Keeps a slot of the host that an attempt is accepted for. A repeated message needs none.
fn reserve(app: &App, record: &TaskRecord, accept: &AcceptTask) -> Result<Option<Reservation>, ApiError> {
    let is_repeated = record
        .lease()
        .is_some_and(|lease| (lease.provider, lease.attempt) == (accept.provider, accept.attempt));
    if is_repeated {
        return Ok(None);
    }
    match app.hub.reserve(accept.provider, record) {
        Ok(reserved) => Ok(Some(reserved)),
        // What cannot be accepted by anybody is refused by the rules.
        Err(_) if record.status() != Status::Open => Ok(None),
        Err(barred) => Err(barred),
    }
}
