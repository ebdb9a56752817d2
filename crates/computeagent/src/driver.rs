//! One attempt, from the node's acceptance to the relay's acknowledgement. Each has a driver of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::clean;
use rpc::node::{ComputeOutcome, ComputeStatus};
use rpc::tasks::{FailureView, Phase};
use taskmarket::{MAX_CODE_BYTES, MAX_MESSAGE_BYTES, Timestamp};

use crate::agent::{Shared, now};
use crate::attempts::Place;
use crate::journal::{Entry, Stage};
use crate::node::NodeError;

/// A node that answers without waiting for news is asked again after this.
const IMPATIENT_NODE_PAUSE: Duration = Duration::from_millis(250);

/// Sees an attempt through.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) place: Place,
    pub(crate) entry: Entry,
    /// Since when this driver is at it.
    pub(crate) begun: Instant,
}

/// What comes after a stage.
pub(crate) enum Next {
    /// Another stage, which is written down first.
    Stage(Stage),
    /// Nothing: the journal forgets the attempt.
    Forget,
}

impl Driver {
    /// Works until the attempt is over or called off, or the agent closes; then the journal keeps it for the next start.
    pub(crate) async fn run(mut self) {
        let called_off = self.called_off();
        let closing = self.shared.closing.clone();
        tokio::select! {
            biased;
            () = called_off => {
                tracing::info!(attempt = %self.name(), "called off");
                self.forget().await;
            }
            () = closing.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        loop {
            let next = match &self.entry.stage {
                Stage::Computing => self.compute().await,
                Stage::Delivering { outcome, proof } => {
                    self.place.leave_slot(Phase::Uploading);
                    let (outcome, proof) = (outcome.clone(), proof.clone());
                    self.deliver(outcome, proof).await
                }
                Stage::Failing { failure } => {
                    self.place.leave_slot(Phase::Failed);
                    let failure = failure.clone();
                    self.give_up(failure).await
                }
                Stage::Done { .. } => return,
            };
            match next {
                Next::Stage(stage) => {
                    self.entry.stage = stage;
                    self.save().await;
                }
                Next::Forget => return self.forget().await,
            }
        }
    }

    /// Follows the node's work to its end.
    async fn compute(&self) -> Next {
        let timing = &self.shared.config.timing;
        let Some(mut money) = self.watch_money().await else { return Next::Forget };
        let mut backoff = timing.backoff();
        let mut seen = None;
        loop {
            let lease_until = match money.lease(self) {
                Ok(lease_until) => lease_until,
                Err(given_up) => return given_up.map_or(Next::Forget, failing),
            };
            let left = Duration::from_secs(lease_until.since(now()));
            if left.is_zero() {
                tracing::warn!(attempt = %self.name(), "its lease is over and the node is not done");
                let over = failure("lease_over", "the lease is over and the compute node is not done");
                return if self.money().is_some() { failing(over) } else { Next::Forget };
            }
            let asked = Instant::now();
            let wait = timing.status_wait.min(left);
            let task_id = self.entry.key().task_id;
            let answer = tokio::select! {
                answer = self.shared.node.status(&task_id, seen, wait) => answer,
                () = money.changed() => {
                    money.follow(self).await;
                    continue;
                }
            };
            match answer {
                Ok(status) if status.attempt != self.entry.key().attempt => return failing(restarted()),
                Ok(status) => {
                    backoff.reset();
                    let news = seen != Some(status.revision);
                    seen = Some(status.revision);
                    if money.is_held(status.held) {
                        money.follow(self).await;
                    }
                    if let Some(next) = self.judge(status) {
                        return next;
                    }
                    if !news && asked.elapsed() < IMPATIENT_NODE_PAUSE {
                        tokio::time::sleep(IMPATIENT_NODE_PAUSE).await;
                    }
                }
                Err(NodeError::Unknown) => return failing(restarted()),
                Err(error @ (NodeError::Token(_) | NodeError::Unreachable(_) | NodeError::Refused(_))) => {
                    let patience = left.saturating_sub(timing.unreachable_margin);
                    if patience.is_zero() {
                        return failing(failure("node_unreachable", &error.to_string()));
                    }
                    // A node that was restarted counts its revisions anew.
                    seen = None;
                    tracing::debug!(attempt = %self.name(), %error, "the node does not tell");
                    tokio::time::sleep(backoff.next_delay().min(patience)).await;
                }
            }
        }
    }

    /// What the node's word means; `None` while it works.
    fn judge(&self, status: ComputeStatus) -> Option<Next> {
        match status.phase {
            Phase::Fetching | Phase::Running | Phase::Uploading => {
                self.place.progress(status.phase, status.percent);
                None
            }
            Phase::Done => Some(match status.outcome {
                Some(outcome) => {
                    tracing::info!(attempt = %self.name(), result = %outcome.result_hash, "computed");
                    Next::Stage(Stage::Delivering { outcome, proof: None })
                }
                None => failing(failure("node_error", "the compute node is done and names no result")),
            }),
            Phase::Failed => {
                let told = status.failure.unwrap_or_else(|| failure("node_error", "the node gave no reason"));
                Some(failing(failure(&told.code, &told.message)))
            }
            Phase::Cancelled => Some(failing(failure("cancelled", "called off at the compute node"))),
        }
    }

    /// Writes the entry down. Where that fails the attempt goes on: a restart would repeat the stage before, which is harmless.
    pub(crate) async fn save(&self) {
        if let Err(error) = self.shared.journal.save(&self.entry).await {
            tracing::error!(attempt = %self.name(), %error, "the journal cannot be written");
        }
    }

    /// Frees the node and forgets the attempt.
    async fn forget(&mut self) {
        let key = self.entry.key();
        self.leave_money(failure("called_off", "the attempt was called off")).await;
        if let Err(error) = self.shared.journal.remove(&key).await {
            tracing::error!(attempt = %self.name(), %error, "the journal's entry cannot be removed");
        }
        if let Err(error) = self.shared.node.cancel(&key.task_id).await {
            tracing::debug!(attempt = %self.name(), %error, "the node was not told that the attempt is over");
        }
    }

    pub(crate) fn name(&self) -> String {
        let key = self.entry.key();
        format!("{}/{}", key.task_id, key.attempt)
    }

    pub(crate) fn lease_until(&self) -> Timestamp {
        self.entry.accept.mutation.lease_until
    }

    /// What came out may be handed in until then: a relay that was away so long has nothing to say about it.
    pub(crate) fn is_forlorn(&self) -> bool {
        now() > self.lease_until().plus(self.shared.config.timing.retention.as_secs())
    }
}

/// The stage of an attempt that is given up.
pub(crate) fn failing(failure: FailureView) -> Next {
    Next::Stage(Stage::Failing { failure })
}

/// A failure as it may be signed: a code of `a-z`, `0-9` and `_`, and both within their bounds.
pub(crate) fn failure(code: &str, message: &str) -> FailureView {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let code_holds = !code.is_empty() && code.len() <= MAX_CODE_BYTES && code.bytes().all(is_word);
    FailureView {
        code: if code_holds { code } else { "node_error" }.to_owned(),
        message: clean(message, MAX_MESSAGE_BYTES),
    }
}

fn restarted() -> FailureView {
    failure("node_restarted", "the compute node does not know the attempt any more")
}

/// The device that a proof names.
pub(crate) fn gpu_name(overridden: Option<&String>, outcome: &ComputeOutcome) -> String {
    clean(overridden.unwrap_or(&outcome.device), taskmarket::MAX_GPU_NAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_bounded() {
        assert_eq!(failure("out_of_fuel", "m").code, "out_of_fuel");
        for code in ["", "Out Of Fuel", &"x".repeat(65)] {
            assert_eq!(failure(code, "m").code, "node_error");
        }
        assert_eq!(failure("x", &"é".repeat(2000)).message.len(), MAX_MESSAGE_BYTES);
    }
}
