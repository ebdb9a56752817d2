//! Tasks on the chat endpoint: a body of `POST /v1/chat/completions` with `model_cid` and `input_cid` is a task, which [`ChatTask::task`]
//! makes of it the same way for everybody, so that its digest can be computed without asking.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taskmarket::{
    Address, Amount, Bytes32, ContentHash, Domain, Message as _, Provider, Reference, Runtime, Signature,
    Status, Task, TaskConfig, TaskId, TaskRecord, Timestamp,
};

use crate::error::ErrorDetail;
use crate::tasks::Contract;

/// How long an attempt may run where a body does not say, in seconds.
const MAX_DURATION: u64 = 600;
/// How many attempts are made where a body does not say.
const MAX_ATTEMPTS: u32 = 3;
/// How long a result may be disputed where a body does not say, in seconds.
const DISPUTE_WINDOW: u64 = 86_400;
/// How long an arbiter has where a body does not say, in seconds.
const ARBITER_WINDOW: u64 = 604_800;
/// Deadlines that bodies do not say are at full hours, so that who signs and who checks come to the same; in seconds.
const HOUR: u64 = 3600;

/// The fields of a task in the body of a chat request. What is absent has the value that [`ChatTask::task`] says; all other fields of
/// the body are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatTask {
    /// What the answer calls its model.
    #[serde(default)]
    pub model: Option<String>,
    /// Whether the answer is to come as server-sent events.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Whether to answer at once, with where the task is.
    #[serde(default)]
    pub background: Option<bool>,
    /// Who asks for the work, and signs.
    #[serde(default)]
    pub requester: Option<Provider>,
    /// Where the model (or program) is.
    #[serde(default)]
    pub model_cid: Option<Reference>,
    /// The model's SHA-256.
    #[serde(default)]
    pub model_hash: Option<ContentHash>,
    /// Where the input is.
    #[serde(default)]
    pub input_cid: Option<Reference>,
    /// The input's SHA-256.
    #[serde(default)]
    pub input_hash: Option<ContentHash>,
    /// What it needs.
    #[serde(default)]
    pub config: Option<ChatTaskConfig>,
    /// The token that pays.
    #[serde(default)]
    pub token: Option<Contract>,
    /// What the requester offers.
    #[serde(default)]
    pub budget: Option<Amount>,
    /// What a provider locks.
    #[serde(default)]
    pub provider_stake: Option<Amount>,
    /// What a requester locks with a dispute.
    #[serde(default)]
    pub dispute_bond: Option<Amount>,
    /// When the offer ends.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// How long the result may be disputed, in seconds.
    #[serde(default)]
    pub dispute_window: Option<u64>,
    /// How long the arbiter has, in seconds.
    #[serde(default)]
    pub arbiter_window: Option<u64>,
    /// Who resolves disputes.
    #[serde(default)]
    pub arbiter: Option<Contract>,
    /// Tells apart tasks that are otherwise alike.
    #[serde(default)]
    pub salt: Option<Bytes32>,
    /// The contract that it is signed for; absent for an unsettled task.
    #[serde(default)]
    pub verifying_contract: Option<Contract>,
    /// The requester's signature of the task.
    #[serde(default)]
    pub signature: Option<Signature>,
}

/// What a task of a chat request needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ChatTaskConfig {
    /// What executes it; absent where the model's reference leaves no doubt.
    pub runtime: Option<Runtime>,
    /// The runtime's parameters, as canonical JSON text; absent for `{}`.
    pub params: Option<String>,
    /// Words that the GPU's name must contain; absent for any device.
    pub gpu_type: Option<String>,
    /// GPUs asked for; absent for one if a GPU is asked for, else none.
    pub gpu_count: Option<u32>,
    /// Memory that each GPU must have, in MiB; absent for any.
    pub min_vram: Option<u64>,
    /// How long one attempt may run, in seconds; absent for 600.
    pub max_duration: Option<u64>,
    /// How many attempts are made; absent for 3.
    pub max_attempts: Option<u32>,
}

/// What a body lacks to be a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Lacking {
    /// The field.
    pub field: &'static str,
    /// What it is needed for.
    pub why: String,
}

impl ChatTask {
    /// The domain's contract; zero for an unsettled task.
    pub fn verifying_contract(&self) -> Address {
        self.verifying_contract.map(|contract| contract.0).unwrap_or_default()
    }

    /// The deadlines that the body can mean: its own, or the full hours that one comes to who makes the task now, and came to an hour
    /// ago at most. The first is the one to sign.
    pub fn deadlines(&self, now: Timestamp) -> Vec<Timestamp> {
        match self.deadline {
            Some(deadline) => vec![deadline],
            // At least an hour ahead, and two at most.
            None => [2, 1].map(|hours| Timestamp::from_unix((now.unix() / HOUR + hours) * HOUR)).to_vec(),
        }
    }

    /// The task that the body means with this deadline. What is absent is: hashes unpinned; `params` `{}`; `gpu_count` 1 where
    /// `gpu_type` or `min_vram` ask for a GPU, else 0; `max_duration` 600; `max_attempts` 3; `budget` 0; `dispute_window` 86,400;
    /// `arbiter_window` 604,800; `salt` zero, so that the same body within an hour is the same task; of an unsettled task `token`,
    /// `arbiter`, stake and bond zero; of a settled one stake and bond half the budget. The runtime follows from the model's reference
    /// where that leaves no doubt: `model://` is `openai`, `oci://` is `container`, a path that ends in `.wasm` is `wasm`, one that ends
    /// in a slash is `embed`, and any other file that is to have a GPU is `container`.
    ///
    /// # Errors
    /// Something is absent that nobody can guess.
    pub fn task(&self, deadline: Timestamp) -> Result<Task, Lacking> {
        let lacking = |field, why: &str| Lacking { field, why: why.to_owned() };
        let settled = !self.verifying_contract().is_zero();
        let contract = |contract: Option<Contract>, field| match contract {
            Some(contract) => Ok(contract.0),
            None if settled => Err(lacking(field, "a settled task says it")),
            None => Ok(Address::ZERO),
        };
        let budget = self.budget.unwrap_or_default();
        let share = if settled { budget.half_up() } else { Amount::ZERO };
        let cid = |cid: &Option<Reference>, field| {
            cid.clone().ok_or_else(|| lacking(field, "a task has a model_cid and an input_cid"))
        };
        let model_cid = cid(&self.model_cid, "model_cid")?;
        let requester = self.requester.ok_or_else(|| lacking("requester", "say who signs the task"))?.0;
        Ok(Task {
            requester,
            model_hash: self.model_hash.unwrap_or(ContentHash::UNPINNED),
            input_cid: cid(&self.input_cid, "input_cid")?,
            input_hash: self.input_hash.unwrap_or(ContentHash::UNPINNED),
            config: self.config.clone().unwrap_or_default().complete(&model_cid)?,
            model_cid,
            token: contract(self.token, "token")?,
            budget,
            provider_stake: self.provider_stake.unwrap_or(share),
            dispute_bond: self.dispute_bond.unwrap_or(share),
            deadline,
            dispute_window: self.dispute_window.unwrap_or(DISPUTE_WINDOW),
            arbiter_window: self.arbiter_window.unwrap_or(ARBITER_WINDOW),
            arbiter: contract(self.arbiter, "arbiter")?,
            salt: self.salt.unwrap_or_default(),
        })
    }
}

impl ChatTaskConfig {
    fn complete(self, model: &Reference) -> Result<TaskConfig, Lacking> {
        let gpu_type = self.gpu_type.unwrap_or_default();
        let min_vram = self.min_vram.unwrap_or_default();
        let wants_gpu = !gpu_type.is_empty() || min_vram > 0;
        let gpu_count = self.gpu_count.unwrap_or(u32::from(wants_gpu));
        let runtime = match self.runtime.or_else(|| infer(model.as_str(), gpu_count > 0)) {
            Some(runtime) => runtime,
            None => {
                let all = Runtime::ALL.map(Runtime::as_str).join(", ");
                let why = format!("what model_cid is for cannot be told from it: say one of {all}");
                return Err(Lacking { field: "config.runtime", why });
            }
        };
        Ok(TaskConfig {
            runtime,
            params: self.params.unwrap_or_else(|| "{}".to_owned()),
            gpu_type,
            gpu_count,
            min_vram,
            max_duration: self.max_duration.unwrap_or(MAX_DURATION),
            max_attempts: self.max_attempts.unwrap_or(MAX_ATTEMPTS),
        })
    }
}

/// The runtime that a model is for, where its reference leaves no doubt.
fn infer(model: &str, wants_gpu: bool) -> Option<Runtime> {
    let (scheme, rest) = model.split_once("://")?;
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    match scheme {
        "model" => Some(Runtime::Openai),
        "oci" => Some(Runtime::Container),
        _ if path.ends_with(".wasm") => Some(Runtime::Wasm),
        _ if path.ends_with('/') => Some(Runtime::Embed),
        // Of a path on a host's disk or in IPFS nobody knows whether it is a file. A single file needs a GPU in a container alone.
        "https" | "http" | "artifact" if wants_gpu => Some(Runtime::Container),
        _ => None,
    }
}

/// A message as wallets sign it: EIP-712 typed data, as `eth_signTypedData_v4` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TypedData {
    /// The fields of each type, `EIP712Domain` among them.
    pub types: Value,
    /// The type of the message.
    pub primary_type: String,
    /// Where the signature is valid.
    pub domain: Value,
    /// The message; amounts are decimal strings.
    pub message: Value,
}

impl TypedData {
    /// A task under a domain.
    pub fn of_task(task: &Task, domain: &Domain) -> Self {
        let Domain { chain_id, verifying_contract } = domain;
        let hash = |hash: &ContentHash| format!("{:#x}", hash.0);
        let config = &task.config;
        Self {
            types: types(&Task::type_string()),
            primary_type: Task::NAME.to_owned(),
            domain: json!({
                "name": Domain::NAME, "version": Domain::VERSION, "chainId": chain_id,
                "verifyingContract": verifying_contract.to_checksum(None),
            }),
            message: json!({
                "requester": task.requester.to_checksum(None),
                "modelCid": task.model_cid,
                "modelHash": hash(&task.model_hash),
                "inputCid": task.input_cid,
                "inputHash": hash(&task.input_hash),
                "config": {
                    "runtime": config.runtime, "params": config.params, "gpuType": config.gpu_type,
                    "gpuCount": config.gpu_count, "minVram": config.min_vram,
                    "maxDuration": config.max_duration, "maxAttempts": config.max_attempts,
                },
                "token": task.token.to_checksum(None),
                "budget": task.budget,
                "providerStake": task.provider_stake,
                "disputeBond": task.dispute_bond,
                "deadline": task.deadline.unix(),
                "disputeWindow": task.dispute_window,
                "arbiterWindow": task.arbiter_window,
                "arbiter": task.arbiter.to_checksum(None),
                "salt": task.salt,
            }),
        }
    }
}

/// The types of an EIP-712 type string, such as `A(uint256 x,B y)B(string z)`, and the domain's.
fn types(text: &str) -> Value {
    const DOMAIN: &str = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
    let fields = |list: &str| -> Value {
        let pairs = list.split(',').filter_map(|field| field.split_once(' '));
        pairs.map(|(kind, name)| json!({ "name": name, "type": kind })).collect()
    };
    let types = DOMAIN.split(')').chain(text.split(')')).filter_map(|one| one.split_once('('));
    Value::Object(types.map(|(name, list)| (name.to_owned(), fields(list))).collect())
}

/// Where a task of a chat request stands: `zorai` in its answers and errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatTaskState {
    /// The task.
    pub task_id: TaskId,
    /// Where the work stands.
    pub status: Status,
    /// The current or last attempt; zero before the first.
    pub attempt: u32,
    /// Who holds, or last held, it.
    pub provider: Option<Provider>,
    /// The result's SHA-256, once there is one.
    pub result_hash: Option<ContentHash>,
    /// Where the result is, once there is one.
    pub result_cid: Option<Reference>,
    /// The task's path at this relay.
    pub task_url: String,
    /// Its result's, once there is one.
    pub result_url: Option<String>,
}

impl From<&TaskRecord> for ChatTaskState {
    fn from(record: &TaskRecord) -> Self {
        let proof = record.submission().map(|submission| &submission.proof.message);
        let task_url = format!("/v1/tasks/{}", record.id);
        Self {
            task_id: record.id,
            status: record.status(),
            attempt: record.attempts,
            provider: record.provider,
            result_hash: proof.map(|proof| proof.result_hash),
            result_cid: proof.map(|proof| proof.result_cid.clone()),
            result_url: proof.map(|_| format!("{task_url}/result")),
            task_url,
        }
    }
}

/// The answer to a chat request that is a task, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatTaskAnswer {
    /// `task-` and the task's id.
    pub id: String,
    /// `chat.completion`, or `chat.completion.chunk` in a stream.
    pub object: String,
    /// When the task was published, in seconds from 1970-01-01 UTC.
    pub created: u64,
    /// The body's `model`, or its `model_cid`.
    pub model: String,
    /// One, with the result as its content, or none while there is none.
    pub choices: Vec<Value>,
    /// Where the task stands.
    pub zorai: ChatTaskState,
}

/// The error of a chat request that is a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatTaskError {
    /// The error.
    pub error: ChatTaskErrorDetail,
}

/// What went wrong with a task of a chat request, and what there is to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatTaskErrorDetail {
    /// What any error says.
    #[serde(flatten)]
    pub detail: ErrorDetail,
    /// What to sign, where the signature is what is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typed_data: Option<TypedData>,
    /// The same as the body of a task: what to send, in these fields, with the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Where the task stands, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zorai: Option<ChatTaskState>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"model":"zorai-demo","messages":[],"requester":"0x0000000000000000000000000000000000000001",
        "model_cid":"https://signed.example/model.bin","input_cid":"https://signed.example/input.json",
        "budget":"10000000000000000","config":{"gpu_type":"A100","min_vram":8192,"max_duration":1800}}"#;

    fn body(text: &str) -> ChatTask {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_absent_is_the_same_for_everybody() {
        let asked = body(BODY);
        let task = asked.task(asked.deadlines(Timestamp::from_unix(3599))[0]).unwrap();
        let shown = serde_json::to_value(&task).unwrap();
        assert_eq!(
            shown,
            json!({
                "requester": "0x0000000000000000000000000000000000000001",
                "model_cid": "https://signed.example/model.bin", "model_hash": "00".repeat(32),
                "input_cid": "https://signed.example/input.json", "input_hash": "00".repeat(32),
                "config": {
                    "runtime": "container", "params": "{}", "gpu_type": "A100", "gpu_count": 1, "min_vram": 8192,
                    "max_duration": 1800, "max_attempts": 3
                },
                "token": Address::ZERO.to_string(), "budget": "10000000000000000", "provider_stake": "0",
                "dispute_bond": "0", "deadline": "1970-01-01T02:00:00Z", "dispute_window": 86400,
                "arbiter_window": 604800, "arbiter": Address::ZERO.to_string(), "salt": format!("0x{}", "00".repeat(32)),
            })
        );
        // The task itself is a body that means it.
        let again: ChatTask = serde_json::from_value(shown).unwrap();
        assert_eq!(again.deadlines(Timestamp::from_unix(1)), [task.deadline]);
        assert_eq!(again.task(task.deadline).unwrap(), task);
    }

    #[test]
    fn deadlines_hold_over_the_hour() {
        let asked = body(BODY);
        let [before, after] = [7199, 7200].map(|now| asked.deadlines(Timestamp::from_unix(now)));
        assert_eq!(before[0], Timestamp::from_unix(10_800));
        assert!(after.contains(&before[0]) && after[0] > before[0]);
    }

    #[test]
    fn a_settled_task_says_more() {
        let contract = format!("0x{}", "11".repeat(20));
        let mut asked = body(BODY);
        asked.verifying_contract = serde_json::from_value(json!(contract)).unwrap();
        let now = Timestamp::from_unix(0);
        assert_eq!(asked.task(now).unwrap_err().field, "token");
        asked.token = asked.verifying_contract;
        assert_eq!(asked.task(now).unwrap_err().field, "arbiter");
        asked.arbiter = asked.verifying_contract;
        let task = asked.task(now).unwrap();
        assert_eq!(task.provider_stake, "5000000000000000".parse().unwrap());
        assert_eq!(task.dispute_bond, task.provider_stake);
    }

    #[test]
    fn the_runtime_follows_from_the_model_where_it_can() {
        let digest = "ab".repeat(32);
        for (model, wants_gpu, runtime) in [
            ("model://x", false, Some(Runtime::Openai)),
            ("oci://a/b@sha256:00", false, Some(Runtime::Container)),
            ("https://a.example/p.wasm?sig=1", false, Some(Runtime::Wasm)),
            ("https://a.example/p?x=.wasm", false, None),
            (&format!("artifact://{digest}/"), true, Some(Runtime::Embed)),
            (&format!("artifact://{digest}"), false, None),
            (&format!("artifact://{digest}"), true, Some(Runtime::Container)),
            ("ipfs://bafy", true, None),
        ] {
            assert_eq!(infer(model, wants_gpu), runtime, "{model}");
        }
        let mut asked = body(BODY);
        asked.config = None;
        let lacking = asked.task(Timestamp::from_unix(0)).unwrap_err();
        assert!(lacking.field == "config.runtime" && lacking.why.contains("embed, wasm"), "{lacking}");
    }

    #[test]
    fn typed_data_has_all_fields_of_the_type() {
        let asked = body(BODY);
        let task = asked.task(Timestamp::from_unix(7200)).unwrap();
        let typed = TypedData::of_task(&task, &Domain::UNSETTLED);
        for (name, value) in [
            ("Task", &typed.message),
            ("TaskConfig", &typed.message["config"]),
            ("EIP712Domain", &typed.domain),
        ] {
            let fields = typed.types[name].as_array().unwrap();
            let named: Vec<_> = fields.iter().map(|field| field["name"].as_str().unwrap()).collect();
            assert_eq!(value.as_object().unwrap().len(), named.len(), "{name}");
            assert!(named.iter().all(|field| value.get(*field).is_some()), "{name}: {named:?}");
        }
        assert_eq!(typed.message["budget"], "10000000000000000");
    }
}
