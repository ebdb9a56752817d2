//! Following a task live until there is a result, or there will be none.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use reqwest::StatusCode;
use rpc::tasks::{Entry, EventView, Phase, Progress};
use taskmarket::{Event, Recorded, Status, TaskId, Timestamp, Word};
use tokio::time::{sleep, timeout};

use crate::failure::{Exit, Failure, Outcome};
use crate::relay::Relay;
use crate::sse::Parser;
use crate::ui::{Style, Ui, clean, span};

/// How long a task may stay open before its user is told why, and how often the reason is looked up again.
const EXPLAIN_AFTER: Duration = Duration::from_secs(3);
/// The first pause before a broken connection is made anew; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest of these pauses.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long the relay may stay out of reach before following is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// Follows one task.
pub(crate) struct Follower<'a> {
    relay: &'a Relay,
    ui: &'a Ui,
    id: TaskId,
    since: Instant,
    bar: ProgressBar,
    last: Option<u64>,
    status: Option<Status>,
    phase: Option<(u32, Phase)>,
    explained: String,
    /// Why the last attempt failed, and what helps.
    failure: Option<(String, Option<&'static str>)>,
}

impl<'a> Follower<'a> {
    /// Follows the task with this id; `since` is when it was published.
    pub(crate) fn new(relay: &'a Relay, ui: &'a Ui, id: TaskId, since: Instant) -> Self {
        Self {
            relay,
            ui,
            id,
            since,
            bar: ui.spinner("waiting"),
            last: None,
            status: None,
            phase: None,
            explained: String::new(),
            failure: None,
        }
    }

    /// Shows what happens until there is a result, and gives the status then.
    ///
    /// # Errors
    /// Exit code 1 where there will be none: the task failed, expired or was cancelled; 4 where the relay stays out of reach.
    pub(crate) async fn until_result(mut self) -> Outcome<Status> {
        let status = self.until(|status| status.is_final() || has_result(status)).await?;
        self.bar.finish_and_clear();
        if has_result(status) {
            return Ok(status);
        }
        let (why, hint) = self.failure.take().unwrap_or_default();
        let why = if why.is_empty() { why } else { format!(": {why}") };
        let failure = Failure::failed(format_args!("the task is {status}{why}"));
        let failure = hint.into_iter().fold(failure, Failure::hint);
        Err(failure.hint(format_args!("its history: zorai-compute events {}", self.id)))
    }

    /// Shows what happens until nothing can happen any more.
    pub(crate) async fn until_final(mut self) -> Outcome {
        self.until(Status::is_final).await?;
        self.bar.finish_and_clear();
        Ok(())
    }

    async fn until(&mut self, enough: impl Fn(Status) -> bool) -> Outcome<Status> {
        let mut pause = FIRST_PAUSE;
        let mut last_contact = Instant::now();
        loop {
            match self.stream(&enough).await {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {
                    last_contact = Instant::now();
                    pause = FIRST_PAUSE;
                }
                Err(failure) if failure.exit() != Exit::Unreachable => return Err(failure),
                Err(failure) if last_contact.elapsed() > GIVE_UP_AFTER => {
                    return Err(failure.hint(format_args!(
                        "the task goes on without you: zorai-compute status {}",
                        self.id
                    )));
                }
                Err(failure) => {
                    if pause == FIRST_PAUSE {
                        self.ui.say(format_args!("{}; trying again", failure.message()));
                    }
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
            sleep(pause).await;
        }
    }

    /// Follows one connection to its end; `Some` says that it was enough.
    async fn stream(&mut self, enough: &impl Fn(Status) -> bool) -> Outcome<Option<Status>> {
        let mut response = self.relay.follow(self.id, self.last).await?;
        if response.status() == StatusCode::NO_CONTENT {
            // The task has ended, and everything of it was told.
            let status = self.relay.task(self.id).await?.status;
            return Ok(enough(status).then_some(status));
        }
        let mut parser = Parser::default();
        loop {
            let piece = match timeout(EXPLAIN_AFTER, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                // The connection ended or broke: another one goes on where it stopped.
                Ok(Ok(None) | Err(_)) => return Ok(None),
                Err(_) => {
                    self.explain().await;
                    continue;
                }
            };
            let events = parser
                .feed(&piece)
                .map_err(|_| Failure::failed("the relay sends events that are too long to be any"))?;
            for data in events {
                let Ok(event) = serde_json::from_str::<EventView>(&data) else {
                    self.ui.detail(format_args!("an event of an unknown kind: {}", clean(&data)));
                    continue;
                };
                self.last = event.id.or(self.last);
                self.show(&event);
                if enough(event.status) && event.id.is_some() {
                    return Ok(Some(event.status));
                }
            }
        }
    }

    fn show(&mut self, event: &EventView) {
        match &event.entry {
            Entry::Progress { progress } => self.show_progress(progress),
            Entry::Recorded { recorded, .. } => {
                self.status = Some(event.status);
                self.explained.clear();
                if let Event::AttemptFailed(fail) = &recorded.event {
                    let (code, message) = (&fail.message.code, &fail.message.message);
                    let why = format!("{}: {}", clean(code), clean(message));
                    self.failure = Some((why, rpc::failure::hint(code)));
                }
                self.bar.set_message(event.status.to_string());
                self.line(&describe(recorded, event.status));
            }
        }
    }

    fn show_progress(&mut self, progress: &Progress) {
        let words = progress.phase.as_str();
        let percent = progress.percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
        self.bar.set_message(format!("{words}{percent}"));
        let step = (progress.attempt, progress.phase);
        if self.phase.replace(step) != Some(step) && !self.ui.draws() {
            self.line(words);
        }
    }

    fn line(&self, words: &str) {
        let at = format!("{:>7}", span(self.since.elapsed()));
        self.ui.say(format_args!("{} {words}", self.ui.paint(Style::Dim, at)));
    }

    /// Says why an open task waits, once for each reason. That this cannot be told is no reason to stop.
    async fn explain(&mut self) {
        if self.status != Some(Status::Open) {
            return;
        }
        let Ok(explanation) = self.relay.explain(self.id).await else { return };
        if explanation.summary != self.explained && explanation.status == Status::Open {
            self.line(&format!("waiting: {}", clean(&explanation.summary)));
            self.explained = explanation.summary;
        }
    }
}

/// Whether a task in this status has a result.
pub(crate) fn has_result(status: Status) -> bool {
    match status {
        Status::Submitted | Status::Completed | Status::Disputed | Status::Resolved => true,
        Status::Open | Status::Accepted | Status::Cancelled | Status::Expired | Status::Failed => false,
    }
}

/// An entry of a history in words.
pub(crate) fn describe(recorded: &Recorded, after: Status) -> String {
    match &recorded.event {
        Event::Published { .. } => "Open".to_owned(),
        Event::Accepted(accept) => {
            let (provider, attempt) = (accept.message.provider, accept.message.attempt);
            format!("Accepted by {provider} (attempt {attempt})")
        }
        Event::AttemptFailed(fail) => {
            let fail = &fail.message;
            let (code, message) = (clean(&fail.code), clean(&fail.message));
            format!("Attempt {} failed: {code}: {message}; the task is {after}", fail.attempt)
        }
        Event::Submitted(proof) => {
            let proof = &proof.message;
            format!("Submitted: result {} on {}", proof.result_hash, clean(&proof.gpu_name))
        }
        Event::Approved(_) => "Completed: the requester approved".to_owned(),
        Event::WindowClosed => "Completed: the dispute window ended".to_owned(),
        Event::Disputed(dispute) => format!("Disputed: {}", clean(&dispute.message.reason)),
        Event::Resolved(resolve) => {
            format!("Resolved: {} of 10,000 to the provider", resolve.message.provider_bps)
        }
        Event::ArbiterTimedOut => "Resolved: the arbiter said nothing in time".to_owned(),
        Event::Cancelled(_) => "Cancelled".to_owned(),
        Event::LeaseLapsed => format!("The provider's lease ended without a proof; the task is {after}"),
        Event::Expired => "Expired".to_owned(),
        Event::Released { attempt, reason } => {
            format!("Attempt {attempt} released ({}); the task is {after}", reason.as_str())
        }
        Event::Unworkable => {
            format!("The relay spends no further attempt on what fails anywhere; the task is {after}")
        }
        Event::Chain(fact) => {
            format!("On chain: {} in transaction {}; the task is {after}", fact.change.name(), fact.tx)
        }
        Event::ChainTime(head) => {
            format!("The chain's time passed, {}; the task is {after}", head.block_time)
        }
    }
}

/// Whose word an entry is, in words.
pub(crate) fn whose(recorded: &Recorded) -> String {
    let by = match &recorded.event {
        Event::Published { task, .. } => Some(task.message.requester),
        Event::Accepted(accept) => Some(accept.message.provider),
        Event::AttemptFailed(fail) => Some(fail.message.provider),
        Event::Submitted(proof) => Some(proof.message.provider),
        Event::Approved(_)
        | Event::Disputed(_)
        | Event::Resolved(_)
        | Event::Cancelled(_)
        | Event::LeaseLapsed
        | Event::Expired
        | Event::WindowClosed
        | Event::ArbiterTimedOut
        | Event::Released { .. }
        | Event::Unworkable
        | Event::Chain(_)
        | Event::ChainTime(_) => None,
    };
    match (recorded.event.word(), by) {
        (Word::Signature, Some(address)) => format!("signed by {address}"),
        (Word::Signature, None) if matches!(recorded.event, Event::Resolved(_)) => {
            "signed by the arbiter".to_owned()
        }
        (Word::Signature, None) => "signed by the requester".to_owned(),
        (Word::Time, _) => "follows from the signed dates".to_owned(),
        (Word::Relay, _) => "the relay's word alone".to_owned(),
        (Word::Chain, _) => "the chain's word".to_owned(),
    }
}

/// How long ago a time was, by this machine's clock.
pub(crate) fn ago(time: Timestamp) -> String {
    format!("{} ago", age(time))
}

/// How old a time is, by this machine's clock. Times have whole seconds, and so has this.
pub(crate) fn age(time: Timestamp) -> String {
    match now().since(time) {
        seconds @ 0..10 => format!("{seconds} s"),
        seconds => span(Duration::from_secs(seconds)),
    }
}

/// This machine's clock.
pub(crate) fn now() -> Timestamp {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_unix(elapsed.unwrap_or_default().as_secs())
}
