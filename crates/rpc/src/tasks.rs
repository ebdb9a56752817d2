//! Publishing, changing, listing and following tasks.

mod history;
mod shown;
mod webhooks;

use serde::{Deserialize, Serialize};
use taskmarket::{
    Address, Bytes32, ChainFact, ComputeProof, Signature, Signed, State, Status, Task, TaskId, TaskRecord,
    Timestamp, eip55,
};

pub use history::{Entry, EventQuery, EventView, FollowedEvent, StreamPlace, TaskHistory};
pub use shown::{PublicConfig, PublicTask, ShownTask};
pub use webhooks::{WebhookList, WebhookReplay, WebhookState, WebhookView};

/// The body of `POST /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishTask {
    /// The task.
    pub task: Task,
    /// The requester's signature of it.
    pub signature: Signature,
    /// The contract it is signed for; absent for an unsettled task.
    #[serde(default = "zero_address", with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub verifying_contract: Address,
    /// Where the relay sends each of the task's events, signed by a secret that the answer tells. Not part of what the requester signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
}

/// The answer of `POST /v1/tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PublishedTask {
    /// The task.
    #[serde(flatten)]
    pub task: TaskView,
    /// What deliveries to `callback_url` are signed with, where the request named one. It is told here and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_secret: Option<String>,
}

fn zero_address() -> Address {
    Address::ZERO
}

/// A contract's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Contract(
    /// The address.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub Address,
);

/// The body of `POST /v1/tasks/{id}/{cancel,accept,fail,proof,approve,dispute,resolve}`, and the shape in which signed mutations
/// travel everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SignedMutation<M> {
    /// The message.
    pub mutation: M,
    /// Its signature.
    pub signature: Signature,
}

impl<M> From<SignedMutation<M>> for Signed<M> {
    fn from(body: SignedMutation<M>) -> Self {
        Self { message: body.mutation, signature: body.signature }
    }
}

impl<M> From<Signed<M>> for SignedMutation<M> {
    fn from(signed: Signed<M>) -> Self {
        Self { mutation: signed.message, signature: signed.signature }
    }
}

/// A task as the relay shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TaskView {
    /// The EIP-712 digest of `task`.
    pub task_id: TaskId,
    /// Where the work stands.
    pub status: Status,
    /// The current or last attempt; zero before the first.
    pub attempt: u32,
    /// Who holds, or last held, the task.
    #[serde(default, with = "optional_address")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<taskmarket::Provider>"))]
    pub provider: Option<Address>,
    /// The task: whole to those who may read it, its requirements and money to others.
    pub task: ShownTask,
    /// The chain id that it is signed for.
    pub chain_id: u64,
    /// The contract that it is signed for; zero for an unsettled task.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub verifying_contract: Address,
    /// The requester's signature, to those who see the whole task.
    #[serde(default)]
    pub signature: Option<Signature>,
    /// The proof that stands, flat with its `signature`, to those who see the whole task.
    #[serde(default)]
    pub proof: Option<ProofView>,
    /// Why the last failed attempt ended.
    #[serde(default)]
    pub failure: Option<FailureView>,
    /// What the chain says of the money: one word.
    pub settlement: String,
    /// The transaction that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settlement_tx: Option<Bytes32>,
    /// What the chain says last of the money that is not final yet, and may be withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settlement_pending: Option<PendingFact>,
    /// Until when a submitted result may be disputed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispute_until: Option<Timestamp>,
    /// When the relay took it.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When the offer ends.
    pub deadline: Timestamp,
    /// What an attempt that runs now does, by its provider's word; not durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Where its history is.
    pub events_url: String,
    /// Where its result is, once there is one.
    #[serde(default)]
    pub result_url: Option<String>,
}

impl TaskView {
    /// The view of a record, whole or as strangers see it. URLs are paths on the relay.
    pub fn new(record: &TaskRecord, whole: bool, progress: Option<Progress>) -> Self {
        let submission = record.submission();
        Self {
            task_id: record.id,
            status: record.status(),
            attempt: record.attempts,
            provider: record.provider.map(|provider| provider.0),
            task: if whole {
                ShownTask::Whole(Box::new(record.task.clone()))
            } else {
                ShownTask::Public(Box::new(PublicTask::from(&record.task)))
            },
            chain_id: record.domain.chain_id,
            verifying_contract: record.domain.verifying_contract,
            signature: whole.then_some(record.signature),
            proof: submission.filter(|_| whole).map(|submission| ProofView {
                proof: submission.proof.message.clone(),
                signature: submission.proof.signature,
            }),
            failure: record.failure.as_ref().map(|failure| FailureView {
                code: failure.code.clone(),
                // It is free text of the provider's, and may tell what the task is about.
                message: if whole { failure.message.clone() } else { String::new() },
            }),
            settlement: record.settlement.as_str().to_owned(),
            settlement_tx: record.settlement.tx(),
            settlement_pending: None,
            dispute_until: match &record.state {
                State::Submitted { dispute_until, .. } => Some(*dispute_until),
                State::Open
                | State::Accepted { .. }
                | State::Completed { .. }
                | State::Disputed { .. }
                | State::Resolved { .. }
                | State::Cancelled
                | State::Expired
                | State::Failed => None,
            },
            created_at: record.created_at,
            updated_at: record.updated_at,
            deadline: record.task.deadline,
            progress,
            events_url: format!("/v1/tasks/{}/events", record.id),
            result_url: submission.map(|_| format!("/v1/tasks/{}/result", record.id)),
        }
    }
}

/// What the chain says that is not final yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PendingFact {
    /// What it says.
    #[serde(flatten)]
    pub fact: ChainFact,
    /// How many blocks, its own included, there are from its own on.
    pub confirmations: u64,
    /// How many make it final.
    pub needed: u64,
}

/// A proof with its signature beside its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProofView {
    /// The signed fields.
    #[serde(flatten)]
    pub proof: ComputeProof,
    /// The provider's signature.
    pub signature: Signature,
}

/// Why an attempt ended without a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FailureView {
    /// A stable word.
    pub code: String,
    /// For people; of a task, empty to those who do not see the whole task.
    pub message: String,
}

/// What an attempt is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    /// Which attempt.
    pub attempt: u32,
    /// What it does.
    pub phase: Phase,
    /// How far it is in that, 0 to 100, where known.
    #[serde(default)]
    pub percent: Option<u8>,
}

/// What happens inside an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Model and input are being fetched and checked.
    Fetching,
    /// The runtime works.
    Running,
    /// The result is on its way to the relay.
    Uploading,
    /// The node is done with it, well.
    Done,
    /// The node is done with it, badly.
    Failed,
    /// It was called off.
    Cancelled,
}

impl Phase {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Running => "running",
            Self::Uploading => "uploading",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The query of `GET /v1/tasks`. Every condition narrows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TaskQuery {
    /// Published by this address.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_address")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<taskmarket::Provider>"))]
    pub requester: Option<Address>,
    /// Held, or last held, by this address.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_address")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<taskmarket::Provider>"))]
    pub provider: Option<Address>,
    /// In this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// With exactly this `gpu_type`, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_type: Option<String>,
    /// Published at this time or later, by the relay's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_from: Option<Timestamp>,
    /// Published before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_before: Option<Timestamp>,
    /// How many at most: 100 by default, 1,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where the last page ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Which of the open tasks, for `zor_getOpenTasks`. Every condition narrows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OpenTasksFilter {
    /// Published by this address.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_address")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<taskmarket::Provider>"))]
    pub requester: Option<Address>,
    /// With exactly this `gpu_type`, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_type: Option<String>,
    /// How many at most: 100 by default, 1,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A page of tasks, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskView>,
    /// Where the next page begins; absent on the last.
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// What was committed up to this event is in the page. Who follows `GET /v1/events` after it, of the first page, misses nothing.
    #[serde(default)]
    pub last_event_id: u64,
}

/// The answer of `GET /v1/tasks/{id}/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// The task.
    pub task_id: TaskId,
    /// Where it stands.
    pub status: Status,
    /// In one sentence, why it waits or does not.
    pub summary: String,
    /// Each host that is online, and what keeps the task from it.
    pub providers: Vec<ProviderFit>,
}

/// What keeps a task from a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProviderFit {
    /// Whose host.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub provider: Address,
    /// Which host.
    pub node_id: Bytes32,
    /// Why the task cannot go there now; empty if it can.
    pub exclusions: Vec<String>,
}

/// Serde for an address that may be absent.
pub mod optional_address {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use taskmarket::{Address, Provider};

    /// Writes an address with its checksum, or `null`.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(address: &Option<Address>, serializer: S) -> Result<S::Ok, S::Error> {
        address.map(Provider).serialize(serializer)
    }

    /// Reads an address or `null`.
    ///
    /// # Errors
    /// Not an address.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Address>, D::Error> {
        Ok(Option::<Provider>::deserialize(deserializer)?.map(|provider| provider.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taskmarket::{Amount, ContentHash, Event, Recorded, ReleaseReason, Runtime, TaskConfig, Word};

    fn task() -> Task {
        Task {
            requester: Address::repeat_byte(0xa1),
            model_cid: "artifact://1111111111111111111111111111111111111111111111111111111111111111/"
                .parse()
                .unwrap(),
            model_hash: ContentHash::UNPINNED,
            input_cid: "https://signed.example/input.json".parse().unwrap(),
            input_hash: ContentHash::UNPINNED,
            config: TaskConfig {
                runtime: Runtime::Embed,
                params: "{}".to_owned(),
                gpu_type: "A100".to_owned(),
                gpu_count: 1,
                min_vram: 40_960,
                max_duration: 600,
                max_attempts: 3,
            },
            token: Address::ZERO,
            budget: "10000000000000000".parse().unwrap(),
            provider_stake: Amount::ZERO,
            dispute_bond: Amount::ZERO,
            deadline: "2026-01-31T12:00:00Z".parse().unwrap(),
            dispute_window: 86_400,
            arbiter_window: 604_800,
            arbiter: Address::ZERO,
            salt: Bytes32::default(),
        }
    }

    fn signature() -> Signature {
        let mut bytes = [1; 65];
        bytes[64] = 27;
        Signature::from_bytes(bytes).unwrap()
    }

    #[test]
    fn a_published_body_reads_with_and_without_a_contract() {
        let body = PublishTask {
            task: task(),
            signature: signature(),
            verifying_contract: Address::ZERO,
            callback_url: None,
        };
        let mut json = serde_json::to_value(&body).unwrap();
        assert_eq!(json["task"]["deadline"], "2026-01-31T12:00:00Z");
        assert_eq!(json["task"]["budget"], "10000000000000000");
        json.as_object_mut().unwrap().remove("verifying_contract");
        assert_eq!(serde_json::from_value::<PublishTask>(json.clone()).unwrap(), body);
        json["task"]["extra"] = 1.into();
        assert!(serde_json::from_value::<PublishTask>(json).unwrap_err().to_string().contains("extra"));
    }

    #[test]
    fn strangers_see_no_references() {
        let public = serde_json::to_string(&PublicTask::from(&task())).unwrap();
        assert!(
            !public.contains("://") && !public.contains("params") && !public.contains("hash"),
            "{public}"
        );
    }

    #[test]
    fn events_and_proofs_read_back_as_they_were_written() {
        let recorded = Recorded {
            version: 3,
            at: Timestamp::from_unix(5),
            event: Event::Released { attempt: 1, reason: ReleaseReason::SessionLost },
        };
        let view = EventView {
            id: Some(7),
            task_id: TaskId(Default::default()),
            status: Status::Open,
            entry: Entry::Recorded { word: Word::Relay, recorded: Box::new(recorded) },
        };
        let text = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<EventView>(&text).unwrap(), view, "{text}");
        let proof = ProofView {
            proof: ComputeProof {
                task_id: TaskId(Default::default()),
                provider: Address::repeat_byte(1),
                attempt: 1,
                model_hash: ContentHash::UNPINNED,
                input_hash: ContentHash::UNPINNED,
                result_hash: ContentHash::UNPINNED,
                result_cid: "https://a.example/r".parse().unwrap(),
                started_at: Timestamp::from_unix(1),
                finished_at: Timestamp::from_unix(2),
                gpu_name: "CPU".to_owned(),
            },
            signature: signature(),
        };
        let text = serde_json::to_string(&proof).unwrap();
        assert_eq!(serde_json::from_str::<ProofView>(&text).unwrap(), proof, "{text}");
    }
}
