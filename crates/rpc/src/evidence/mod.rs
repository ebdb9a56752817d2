//! Evidence of a task: one document with all that was signed, recorded and said about it, and its check.
//!
//! The document is made to be given to others and checked without the relay. [`verify`] replays it from its text alone, by the rules of
//! crate `taskmarket`, and answers with statements, each with whose word it is. What a signature proves is told apart from what only
//! the relay says; that something did **not** happen is never proven here: absence is proved by the chain alone.

mod statements;

use serde::{Deserialize, Serialize};
use taskmarket::{
    Address, Bytes32, ChainFact, Domain, Event, Recorded, RegisterNode, ReplayError, Signature, Signed,
    Status, Task, TaskId, TaskRecord, Timestamp, Word, eip55, keccak256, replay,
};

use crate::relay::DomainView;
use crate::tasks::SignedMutation;

/// The document's format, in its `format`.
pub const FORMAT: &str = "zorai-evidence.v1";

/// The answer of `GET /v1/tasks/{id}/evidence`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// [`FORMAT`].
    pub format: String,
    /// The relay that wrote it.
    pub relay_id: String,
    /// The relay's version.
    pub relay_version: String,
    /// When it was written, by the relay's clock.
    pub written_at: Timestamp,
    /// The task's id.
    pub task_id: TaskId,
    /// Where the task was signed for.
    pub domain: DomainView,
    /// The task.
    pub task: Task,
    /// The requester's signature of it.
    pub signature: Signature,
    /// Where the work stood when this was written.
    pub status: Status,
    /// Where the money stood, by the chain's word: one word.
    pub settlement: String,
    /// The history, oldest first.
    pub events: Vec<EvidenceEvent>,
    /// The sessions of the hosts that took attempts, as far as they overlap with those, oldest first.
    pub sessions: Vec<SessionEvidence>,
    /// What the chain said, oldest first; empty for an unsettled task.
    pub chain: Vec<ChainFact>,
}

/// One event of a task's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EvidenceEvent {
    /// Its place in the task's history, from 1.
    pub version: u64,
    /// When the relay took it, by the relay's clock.
    pub at: Timestamp,
    /// Whose word it is.
    pub word: Word,
    /// The task's status after it.
    pub status: Status,
    /// What happened, with the signed message where one caused it.
    pub event: Event,
}

impl EvidenceEvent {
    /// An event as the relay recorded it, with the task's status after it.
    pub fn new(recorded: Recorded, status: Status) -> Self {
        let Recorded { version, at, event } = recorded;
        Self { version, at, word: event.word(), status, event }
    }

    /// The event as the relay recorded it.
    pub fn recorded(&self) -> Recorded {
        Recorded { version: self.version, at: self.at, event: self.event.clone() }
    }
}

/// A session of a host that took an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SessionEvidence {
    /// Its id.
    pub session_id: String,
    /// Whose host.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub provider: Address,
    /// Which host.
    pub node_id: Bytes32,
    /// At which relay.
    pub relay_id: String,
    /// Counts the host's connections, from 1.
    pub generation: u64,
    /// When it began, by the relay's clock.
    pub connected_at: Timestamp,
    /// When it ended, by the relay's clock; absent while it lasts.
    pub disconnected_at: Option<Timestamp>,
    /// Why it ended, in the relay's words.
    pub reason: Option<String>,
    /// The provider's word for the session, signed under the unsettled domain; absent where the relay did not keep it.
    pub registration: Option<SignedMutation<RegisterNode>>,
    /// What the host offered: the exact text that the registration's `metadata_hash` is the Keccak-256 of.
    pub metadata: String,
}

/// What evidence comes to once all of it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// The task.
    pub task_id: TaskId,
    /// Where the history leads.
    pub status: Status,
    /// What is stated, and by whom.
    pub statements: Vec<Statement>,
}

/// One statement, and whose word it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Statement {
    /// When it was made, by the relay's clock.
    pub at: Timestamp,
    /// Whose word it is.
    pub word: Word,
    /// Who signed it, where somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::tasks::optional_address")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<taskmarket::Provider>"))]
    pub signer: Option<Address>,
    /// What is stated.
    pub text: String,
}

/// What of a document does not hold.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// It is of another format.
    #[error("the format is {found:?}; this checks {FORMAT}")]
    Format {
        /// What it says.
        found: String,
    },
    /// The history does not hold.
    #[error("the history: {0}")]
    History(#[from] ReplayError),
    /// A field says other than what was signed, or what the history comes to.
    #[error("{field}: {why}")]
    Field {
        /// Which, as a path.
        field: String,
        /// What it should say.
        why: String,
    },
}

fn wrong(field: impl Into<String>, why: impl std::fmt::Display) -> EvidenceError {
    EvidenceError::Field { field: field.into(), why: why.to_string() }
}

/// Checks everything in a document that can be checked without the relay or the chain: every signature, every transition, and that
/// what it says beside the history agrees with it.
///
/// # Errors
/// The first thing that does not hold.
pub fn verify(evidence: &Evidence) -> Result<Report, EvidenceError> {
    if evidence.format != FORMAT {
        return Err(EvidenceError::Format { found: evidence.format.clone() });
    }
    let history: Vec<Recorded> = evidence.events.iter().map(EvidenceEvent::recorded).collect();
    let record = replay(&history)?;
    check_frame(evidence, &record)?;
    let mut statements = vec![statements::frame(evidence)];
    statements.extend(check_events(&evidence.events, &history)?);
    for (position, session) in evidence.sessions.iter().enumerate() {
        check_session(position, session, &evidence.events)?;
        statements.extend(statements::session(session));
    }
    Ok(Report { task_id: record.id, status: record.status(), statements })
}

/// What the document says of the task beside its history must be what the history says.
fn check_frame(evidence: &Evidence, record: &TaskRecord) -> Result<(), EvidenceError> {
    let differs = |field: &str| Err(wrong(field, "the history says otherwise"));
    if evidence.task_id != record.id {
        return differs("task_id");
    }
    if evidence.domain != DomainView::from(record.domain) {
        return differs("domain");
    }
    if evidence.task != record.task {
        return differs("task");
    }
    if evidence.signature != record.signature {
        return differs("signature");
    }
    if evidence.status != record.status() {
        return differs("status");
    }
    if evidence.settlement != record.settlement.as_str() {
        return differs("settlement");
    }
    if evidence.written_at < record.updated_at {
        return Err(wrong("written_at", "before the last event"));
    }
    let fact = |entry: &EvidenceEvent| if let Event::Chain(fact) = &entry.event { Some(*fact) } else { None };
    let facts = evidence.events.iter().filter_map(fact);
    if !facts.eq(evidence.chain.iter().copied()) {
        return differs("chain");
    }
    Ok(())
}

/// Folds the history event by event, each of which [`replay`] has taken, and states what it says.
fn check_events(events: &[EvidenceEvent], history: &[Recorded]) -> Result<Vec<Statement>, EvidenceError> {
    let mut record = replay(&history[..1])?;
    let mut statements = Vec::with_capacity(events.len());
    for (position, entry) in events.iter().enumerate() {
        let before = record.clone();
        if position > 0 {
            taskmarket::apply(&mut record, entry.at, &entry.event);
        }
        if entry.word != entry.event.word() {
            let why = format!("a {} event is {:?}'s word", entry.event.name(), entry.event.word());
            return Err(wrong(format!("events[{position}].word"), why));
        }
        if entry.status != record.status() {
            let why = format!("the task is {} after it", record.status());
            return Err(wrong(format!("events[{position}].status"), why));
        }
        statements.push(statements::event(entry, &before));
    }
    Ok(statements)
}

fn check_session(
    position: usize,
    session: &SessionEvidence,
    events: &[EvidenceEvent],
) -> Result<(), EvidenceError> {
    let field = |name: &str| format!("sessions[{position}].{name}");
    if !events.iter().any(|entry| entry.event.holder() == Some(session.provider)) {
        return Err(wrong(field("provider"), "it never held the task"));
    }
    if session.disconnected_at.is_some_and(|ended| ended < session.connected_at) {
        return Err(wrong(field("disconnected_at"), "before connected_at"));
    }
    if session.disconnected_at.is_some() != session.reason.is_some() {
        return Err(wrong(field("reason"), "there is one where the session ended, and only there"));
    }
    let Some(registration) = &session.registration else { return Ok(()) };
    let signed = Signed::from(registration.clone())
        .verify(&Domain::UNSETTLED)
        .map_err(|error| wrong(field("registration"), error))?;
    let message = signed.message();
    let said = (message.provider, message.node_id, &message.relay_id, &message.session_id);
    if said != (session.provider, session.node_id, &session.relay_id, &session.session_id) {
        return Err(wrong(field("registration"), "it is of another session"));
    }
    if Bytes32(keccak256(session.metadata.as_bytes())) != message.metadata_hash {
        return Err(wrong(field("metadata"), "its Keccak-256 is not the registration's metadata_hash"));
    }
    Ok(())
}
