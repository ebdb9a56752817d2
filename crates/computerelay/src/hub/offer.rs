//! Offering an attempt of a task to a host, and calling one off.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use rpc::error::ErrorBody;
use rpc::link::Assignment;
use rpc::tasks::SignedMutation;
use store::Placement;
use taskmarket::{
    AcceptTask, ApproveResult, Mutation, Rejection, Signed, Status, TaskId, TaskRecord, Verified,
};
use tokio::time::{Instant, timeout};

use super::Hub;
use super::entries::{CallOff, Plan};
use super::node::Live;
use super::tries::Tried;
use crate::auth::Grant;
use crate::error::MarketError;

/// The longest answer to an offer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// What hosts say to tasks that their operators do not take.
const POLICY: &[&str] = &[
    "budget_too_low",
    "requester_not_allowed",
    "duration_too_long",
    "image_not_allowed",
    "terms_not_accepted",
];
/// As much of a host's reason as is kept, in characters.
const MAX_REASON_CHARS: usize = 256;

/// How an offer ended that was not taken.
#[derive(Debug)]
enum Untaken {
    /// The task is not on offer any more.
    Gone,
    /// The relay failed; the host has nothing to do with it.
    Relay(MarketError),
    /// The host did not take it.
    Refused {
        reason: String,
        /// Whether its operator takes no such tasks, which will last.
        is_policy: bool,
    },
    /// The host could not be asked or could not take it now.
    Failed(String),
    /// The host left the offer unanswered, or answered what does not hold.
    Broken(String),
}

/// Offers a task to a host and commits its acceptance. However it ends, the floor knows afterwards.
pub(super) async fn offer(hub: &Hub, plan: Plan) {
    let Plan { task_id, live, since } = plan;
    let outcome = match hub.market.elapse(task_id).await {
        Ok(record) if record.status() == Status::Open => offer_open(hub, &live, since, &record).await,
        Ok(_) => Err(Untaken::Gone),
        Err(error) => Err(Untaken::Relay(error)),
    };
    let Err(untaken) = outcome else {
        tracing::info!(%task_id, provider = %live.key.provider, node_id = %live.key.node_id, "task taken");
        return;
    };
    let why = match untaken {
        Untaken::Gone => {
            // The floor may have missed what became of the task.
            hub.look_again(task_id).await;
            let backoff = hub.config.failed_backoff;
            Tried { reason: "the task changed meanwhile".into(), backoff, lasts: false }
        }
        Untaken::Relay(error) => {
            tracing::warn!(%task_id, %error, "offer not completed");
            let backoff = hub.config.failed_backoff;
            Tried { reason: "the relay failed".into(), backoff, lasts: false }
        }
        Untaken::Refused { reason, is_policy } => {
            Tried { reason, backoff: hub.config.refused_backoff, lasts: is_policy }
        }
        Untaken::Failed(reason) => Tried { reason, backoff: hub.config.failed_backoff, lasts: false },
        Untaken::Broken(reason) => {
            hub.floor().blame(live.key.provider, Instant::now());
            Tried { reason, backoff: hub.config.refused_backoff, lasts: false }
        }
    };
    tracing::debug!(%task_id, provider = %live.key.provider, reason = %why.reason, "offer not taken");
    hub.floor().refused(task_id, &live.key, why, Instant::now());
}

async fn offer_open(
    hub: &Hub,
    live: &Arc<Live>,
    since: Option<Instant>,
    record: &TaskRecord,
) -> Result<(), Untaken> {
    let attempt = record.next_attempt();
    let assignment = Assignment {
        task_id: record.id,
        attempt,
        task: record.task.clone(),
        signature: record.signature,
        domain: record.domain.into(),
        attempt_token: hub.market.tokens().mint(&Grant {
            task_id: record.id,
            attempt,
            provider: live.key.provider,
            node_id: live.key.node_id,
        }),
    };
    let asked = timeout(hub.config.offer_timeout, ask(live, &assignment)).await;
    let accept = match asked {
        Ok(Ok(accept)) => accept,
        Ok(Err(untaken)) => return Err(untaken),
        Err(_) => {
            hub.call_off(CallOff { task_id: record.id, attempt, live: Arc::clone(live) });
            return Err(Untaken::Broken(format!("no answer in {:?}", hub.config.offer_timeout)));
        }
    };
    let committed = match check(accept, live, record, attempt) {
        Ok(accept) => commit(hub, live, since, accept).await,
        Err(lie) => Err(Untaken::Broken(format!("its acceptance does not hold: {lie}"))),
    };
    if committed.is_err() {
        hub.call_off(CallOff { task_id: record.id, attempt, live: Arc::clone(live) });
    }
    committed
}

/// Sends the assignment and reads the answer.
async fn ask(live: &Live, assignment: &Assignment) -> Result<Signed<AcceptTask>, Untaken> {
    let body = serde_json::to_vec(assignment).map_err(|error| Untaken::Failed(error.to_string()))?;
    let request = Request::post("/tasks")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Untaken::Failed(error.to_string()))?;
    let response =
        live.link.request(request).await.map_err(|error| Untaken::Failed(format!("not reached: {error}")))?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| Untaken::Failed(format!("its answer broke off: {error}")))?
        .to_bytes();
    match head.status {
        StatusCode::ACCEPTED => serde_json::from_slice::<SignedMutation<AcceptTask>>(&body)
            .map(Signed::from)
            .map_err(|error| Untaken::Broken(format!("its acceptance cannot be read: {error}"))),
        StatusCode::SERVICE_UNAVAILABLE => Err(Untaken::Failed(format!("busy: {}", reason(&body)))),
        StatusCode::CONFLICT => Err(Untaken::Refused {
            reason: format!("refused: {}", reason(&body)),
            is_policy: is_policy(&body),
        }),
        other => Err(Untaken::Refused {
            reason: format!("answered {}: {}", other.as_u16(), reason(&body)),
            is_policy: false,
        }),
    }
}

/// Whether a host refused for what its operator wants.
fn is_policy(body: &[u8]) -> bool {
    serde_json::from_slice::<ErrorBody>(body).is_ok_and(|body| POLICY.contains(&body.error.code.as_str()))
}

/// What a host said, in one bounded line.
pub(super) fn reason(body: &[u8]) -> String {
    let said = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) if !body.error.message.is_empty() => body.error.message,
        Ok(body) => body.error.code,
        Err(_) => return "no reason given".into(),
    };
    said.chars().filter(|c| !c.is_control()).take(MAX_REASON_CHARS).collect()
}

/// Checks that an acceptance is this host's provider's, of this attempt of this task.
fn check(
    accept: Signed<AcceptTask>,
    live: &Live,
    record: &TaskRecord,
    attempt: u32,
) -> Result<Verified<AcceptTask>, String> {
    let message = &accept.message;
    if message.task_id != record.id {
        return Err("it is of another task".into());
    }
    if message.attempt != attempt {
        return Err(format!("it is of attempt {}, not {attempt}", message.attempt));
    }
    if message.provider != live.key.provider {
        return Err("it is of another provider".into());
    }
    accept.verify(&record.domain).map_err(|error| error.to_string())
}

async fn commit(
    hub: &Hub,
    live: &Live,
    since: Option<Instant>,
    accept: Verified<AcceptTask>,
) -> Result<(), Untaken> {
    let waited = since.map(|since| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
    let placement = Placement {
        node_id: live.key.node_id,
        session_id: Some(live.session_id.clone()),
        dispatch_ms: waited,
    };
    match hub.market.place(Mutation::Accept(accept), Some(placement)).await {
        Ok(_) => Ok(()),
        Err(MarketError::Rejected(rejection @ Rejection::Invalid { .. })) => {
            Err(Untaken::Broken(format!("its acceptance does not hold: {rejection}")))
        }
        Err(MarketError::Rejected(_) | MarketError::NotFound(_)) => Err(Untaken::Gone),
        Err(
            error @ (MarketError::UnknownDomain { .. }
            | MarketError::ResultMissing(..)
            | MarketError::Contended(_)
            | MarketError::Store(_)
            | MarketError::Artifacts(_)),
        ) => Err(Untaken::Relay(error)),
    }
}

/// Hands a host the requester's approval of its result.
pub(super) async fn pass_approval(live: &Live, approval: &SignedMutation<ApproveResult>, deadline: Duration) {
    let task_id = approval.mutation.task_id;
    let Ok(body) = serde_json::to_vec(approval) else { return };
    let request =
        Request::post(format!("/tasks/{task_id}/approval")).header(header::CONTENT_TYPE, "application/json");
    let Ok(request) = request.body(Full::new(Bytes::from(body))) else { return };
    match timeout(deadline, live.link.request(request)).await {
        Ok(Ok(response)) => {
            tracing::debug!(%task_id, status = response.status().as_u16(), "approval passed on");
        }
        Ok(Err(error)) => tracing::debug!(%task_id, %error, "approval not passed on"),
        Err(_) => tracing::debug!(%task_id, "approval not passed on in time"),
    }
}

/// Tells a host to stop, as far as it can be told.
pub(super) async fn call_off(live: &Live, task_id: TaskId, attempt: u32, deadline: Duration) {
    let request = Request::delete(format!("/tasks/{task_id}?attempt={attempt}")).body(Empty::<Bytes>::new());
    let Ok(request) = request else { return };
    match timeout(deadline, live.link.request(request)).await {
        Ok(Ok(response)) => {
            tracing::debug!(%task_id, attempt, status = response.status().as_u16(), "attempt called off");
        }
        Ok(Err(error)) => tracing::debug!(%task_id, attempt, %error, "attempt not called off"),
        Err(_) => tracing::debug!(%task_id, attempt, "attempt not called off in time"),
    }
}
