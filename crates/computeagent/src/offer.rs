//! Whether an offered attempt is taken. The relay is not trusted with it: signature, digest and terms are checked here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};
use rpc::link::{Assignment, AttemptKey};
use rpc::node::{ComputeRequest, NodeReport};
use rpc::relay::DomainView;
use rpc::tasks::{Phase, SignedMutation};
use taskmarket::{
    AcceptTask, Domain, LEASE_MARGIN_SECS, Runtime, Signed, Task, TaskId, Verified, latest_lease,
};

use crate::agent::{Shared, now};
use crate::attempts::{NoPlace, Place};
use crate::driver::Driver;
use crate::journal::{Entry, Stage};
use crate::node::NodeError;
use crate::policy::{Pause, allows_image, pause};

/// How long an older attempt of the same task may take to be called off.
const CALL_OFF_PATIENCE: Duration = Duration::from_secs(10);
/// What the lease of a settled task outlasts `max_duration` by at least, in seconds: the time to be bound, and to prove, is in it.
const SETTLED_MARGIN_SECS: u64 = LEASE_MARGIN_SECS - 120;
/// The longest attempt token that is taken, in bytes.
const MAX_TOKEN_BYTES: usize = 1024;

/// Why an offer is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct Refusal {
    /// 400 for what cannot be meant, 409 for what this host does not take, 503 for what it may take later.
    pub(crate) status: StatusCode,
    /// A stable word.
    pub(crate) code: &'static str,
    /// The reason.
    pub(crate) message: String,
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, code: "malformed_request", message: message.into() }
}

pub(crate) fn against(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { status: StatusCode::CONFLICT, code, message: message.into() }
}

pub(crate) fn not_now(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, code, message: message.into() }
}

/// Takes an attempt, or says why not. The same attempt offered again gets the same answer.
///
/// What happens once there is a place goes on even if the relay does not wait for the answer.
pub(crate) async fn take(
    shared: Arc<Shared>,
    assignment: Assignment,
) -> Result<SignedMutation<AcceptTask>, Refusal> {
    let task = check(&shared, &assignment)?;
    let key = AttemptKey { task_id: assignment.task_id, attempt: assignment.attempt };
    let place = match find_place(&shared, key, task.message()).await? {
        Found::Place(place) => place,
        Found::Held(accept) => return Ok(*accept),
    };
    let admission = admit(Arc::clone(&shared), place, task, assignment.attempt_token);
    let admitted = shared.tasks.spawn(admission).await;
    admitted.unwrap_or_else(|_| Err(not_now("internal", "the offer could not be looked at")))
}

/// Checks what does not depend on this host: the domain, the signature, the digest, and the bounds of the task's fields.
fn check(shared: &Shared, assignment: &Assignment) -> Result<Verified<Task>, Refusal> {
    let settled = shared.money.as_ref().map(|money| money.domain());
    let mut served = [Some(Domain::UNSETTLED), settled].into_iter().flatten();
    let Some(domain) = served.find(|domain| assignment.domain == DomainView::from(*domain)) else {
        let message = "this agent takes no tasks of that chain and contract";
        return Err(against("unsupported_domain", message));
    };
    let signed = Signed { message: assignment.task.clone(), signature: assignment.signature };
    let task = signed.verify(&domain).map_err(|error| against("invalid_signature", error.to_string()))?;
    if TaskId(task.digest()) != assignment.task_id {
        return Err(against("task_id_mismatch", format!("the task's id is {}", TaskId(task.digest()))));
    }
    // The market's own bounds: a task outside them cannot have come through an honest relay.
    taskmarket::publish(now(), &task).map_err(|error| against("invalid_task", error.to_string()))?;
    let attempts = 1..=assignment.task.config.max_attempts;
    if !attempts.contains(&assignment.attempt) {
        return Err(against("invalid_attempt", "the task does not allow so many attempts"));
    }
    let token = &assignment.attempt_token;
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES || HeaderValue::from_str(token).is_err() {
        return Err(malformed("attempt_token: it cannot be sent in a header"));
    }
    Ok(task)
}

/// What the operator wants, and how many tasks the host runs at once.
fn check_policy(shared: &Shared, task: &Task) -> Result<u32, Refusal> {
    if shared.draining.is_cancelled() {
        return Err(not_now("draining", "the agent is stopping"));
    }
    let policy = &shared.config.policy;
    if task.budget < policy.min_budget {
        return Err(against(
            "budget_too_low",
            format!("the budget is {}, at least {} is asked here", task.budget, policy.min_budget),
        ));
    }
    if !policy.requesters.is_empty() && !policy.requesters.contains(&task.requester) {
        return Err(against("requester_not_allowed", "this host does not take tasks of that requester"));
    }
    if policy.max_duration_secs.is_some_and(|max| task.config.max_duration > max) {
        return Err(against("duration_too_long", "this host does not take tasks that may run so long"));
    }
    if !allows_image(policy, task) {
        return Err(against("image_not_allowed", "this host does not run that container image"));
    }
    let host = shared.host.borrow();
    if let Some(Pause { code, reason }) = pause(policy, &host, jiff::Timestamp::now()) {
        return Err(not_now(code, reason));
    }
    match &host.report {
        None => {
            let problem = host.problem.clone().unwrap_or_else(|| "it was not reached yet".to_owned());
            return Err(not_now("node_unavailable", problem));
        }
        Some(report) if report.draining => return Err(not_now("draining", "the compute node is draining")),
        Some(NodeReport { unhealthy: Some(reason), .. }) => {
            return Err(not_now("node_unhealthy", reason.clone()));
        }
        Some(_) => {}
    }
    if !host.runtimes(policy).contains(&task.config.runtime) {
        return Err(against(
            "runtime_not_offered",
            format!("this host does not offer runtime {}", task.config.runtime),
        ));
    }
    let named = task.model_cid.as_str().strip_prefix("model://");
    let serves = |report: &NodeReport| report.models.iter().any(|offer| Some(offer.id.as_str()) == named);
    if task.config.runtime == Runtime::Openai && !host.report.as_ref().is_some_and(serves) {
        return Err(against("model_not_offered", "no engine of this host serves that model"));
    }
    Ok(host.slots(policy))
}

enum Found {
    Place(Place),
    Held(Box<SignedMutation<AcceptTask>>),
}

async fn find_place(shared: &Shared, key: AttemptKey, task: &Task) -> Result<Found, Refusal> {
    // Twice: an earlier attempt of the task is called off first.
    for last in [false, true] {
        let no_place = match shared.attempts.held_accept(&key) {
            Some(accept) => NoPlace::Held(accept),
            None => match shared.attempts.reserve(key, check_policy(shared, task)?) {
                Ok(place) => return Ok(Found::Place(place)),
                Err(no_place) => no_place,
            },
        };
        match no_place {
            NoPlace::Held(accept) if accept.mutation.lease_until > now() => return Ok(Found::Held(accept)),
            NoPlace::Held(_) => return Err(against("lease_over", "the lease of this attempt is over")),
            NoPlace::Looking => {
                return Err(not_now("offer_in_progress", "the same offer is being looked at"));
            }
            NoPlace::Newer(attempt) => {
                return Err(against("stale_attempt", format!("attempt {attempt} of the task is held")));
            }
            NoPlace::NoSlot => return Err(not_now("no_free_slot", "all slots are taken")),
            NoPlace::TooMany => {
                return Err(not_now("too_many_attempts", "too many results wait for a relay"));
            }
            NoPlace::Older(older) if !last => {
                if let Some(over) = shared.attempts.call_off(&older) {
                    let _ = tokio::time::timeout(CALL_OFF_PATIENCE, over.cancelled()).await;
                }
            }
            NoPlace::Older(_) => break,
        }
    }
    Err(not_now("earlier_attempt", "an earlier attempt of the task is being called off"))
}

/// Writes the attempt down, hands it to the node, and starts its driver.
async fn admit(
    shared: Arc<Shared>,
    place: Place,
    task: Verified<Task>,
    attempt_token: String,
) -> Result<SignedMutation<AcceptTask>, Refusal> {
    let (key, domain) = (place.key(), task.domain());
    let journal_failed = |error| not_now("journal_failed", format!("the journal: {error}"));
    // A relay that asks for an attempt whose result it had before gets that result again.
    let before = shared.journal.load(&key).await.map_err(journal_failed)?;
    let stage = match before.map(|entry| entry.stage) {
        Some(Stage::Done { outcome, .. }) => Stage::Delivering { outcome, proof: None },
        Some(Stage::Computing | Stage::Delivering { .. } | Stage::Failing { .. }) | None => Stage::Computing,
    };
    let begins = matches!(stage, Stage::Computing);
    let money = shared.money.as_ref().filter(|_| domain.is_settled() && begins);
    let fast = match money {
        Some(money) => Some(money.check(task.message(), &key).await?),
        None => None,
    };
    let task = task.message().clone();
    let accept = sign_acceptance(&shared, &task, key, &domain)?;
    let entry = Entry { task, domain, accept: accept.clone(), attempt_token, stage };
    if let (Some(money), Some(fast)) = (money, fast) {
        let claimed = money.claim(entry.task.clone(), accept.clone(), fast).await;
        claimed.map_err(|error| not_now("journal_failed", error.to_string()))?;
    }
    shared.journal.save(&entry).await.map_err(journal_failed)?;
    if begins {
        // Until the money is bound the node does no more than to see whether model and input can be had.
        hand_to_node(&shared, &entry, fast == Some(false)).await?;
    }
    place.accepted(accept.clone());
    let lease_until = accept.mutation.lease_until;
    tracing::info!(task = %key.task_id, attempt = key.attempt, %lease_until, "accepted");
    shared.tasks.spawn(Driver { shared: Arc::clone(&shared), place, entry, begun: Instant::now() }.run());
    Ok(accept)
}

fn sign_acceptance(
    shared: &Shared,
    task: &Task,
    key: AttemptKey,
    domain: &Domain,
) -> Result<SignedMutation<AcceptTask>, Refusal> {
    let margin = shared.config.policy.lease_margin_secs;
    // A lease on chain has five minutes to run at least, when it begins.
    let margin = if domain.is_settled() { margin.max(SETTLED_MARGIN_SECS) } else { margin };
    let lease_until = latest_lease(task, now()).min(now().plus(task.config.max_duration).plus(margin));
    let provider = shared.wallet().address();
    let accept = AcceptTask { task_id: key.task_id, provider, attempt: key.attempt, lease_until };
    match shared.wallet().sign(&accept, domain) {
        Ok(signed) => Ok(signed.into()),
        Err(error) => Err(not_now("internal", error.to_string())),
    }
}

/// The request by which the node takes an attempt, or begins with one that it holds.
pub(crate) fn compute_request(shared: &Shared, entry: &Entry, hold: bool) -> ComputeRequest {
    let key = entry.key();
    ComputeRequest {
        task_id: key.task_id,
        attempt: key.attempt,
        task: entry.task.clone(),
        relay_url: shared.relay.api().as_str().trim_end_matches('/').to_owned(),
        attempt_token: entry.attempt_token.clone(),
        hold,
    }
}

async fn hand_to_node(shared: &Shared, entry: &Entry, hold: bool) -> Result<(), Refusal> {
    let key = entry.key();
    let refusal = match shared.node.compute(&compute_request(shared, entry, hold)).await {
        Ok(status) if status.phase == Phase::Cancelled => {
            against("attempt_spent", "this attempt was called off at the compute node before")
        }
        Ok(_) => return Ok(()),
        Err(error @ NodeError::Unreachable(_)) => {
            // It may have taken the attempt without our hearing so, and would run it for nobody.
            if let Err(error) = shared.node.cancel(&key.task_id).await {
                tracing::debug!(task = %key.task_id, %error, "the node was not told that the attempt is over");
            }
            not_now("node_unavailable", error.to_string())
        }
        Err(error @ (NodeError::Token(_) | NodeError::Unknown | NodeError::Refused(_))) => {
            not_now("node_refused", error.to_string())
        }
    };
    tracing::warn!(task = %key.task_id, attempt = key.attempt, %refusal, "the compute node did not take it");
    if let Err(error) = shared.journal.remove(&key).await {
        tracing::error!(task = %key.task_id, %error, "the journal's entry cannot be removed");
    }
    if let Some(money) = shared.money.as_ref().filter(|_| entry.domain.is_settled())
        && let Err(error) = money.discard(&key).await
    {
        tracing::error!(task = %key.task_id, %error, "the claim cannot be removed");
    }
    Err(refusal)
}
