//! Inference through the relay: what models hosts serve, and what passes between relay and agent beside the engine's own bytes.
//!
//! The relay sends a client's request on over the link, `POST /v1/chat/completions` and its siblings, with the body as it came, the
//! header `x-request-id`, and [`MODEL_HEADER`]. The agent's answer is the engine's, byte for byte, and ends with a trailer
//! [`RECEIPT_TRAILER`]: the JSON of a [`SignedMutation`]`<InferenceReceipt>`. `request_hash` and
//! `response_hash` in it are SHA-256 of the bodies as they crossed the link.

use serde::{Deserialize, Serialize};
use taskmarket::{Address, Amount, Bytes32, InferenceReceipt, Provider, Timestamp, eip55};

use crate::tasks::SignedMutation;

/// Names the model that the relay chose, so that nobody has to read the body for it.
pub const MODEL_HEADER: &str = "x-zorai-model";

/// The trailer with the signed receipt.
pub const RECEIPT_TRAILER: &str = "x-zorai-receipt";

/// Names, in an answer, the provider that served it.
pub const PROVIDER_HEADER: &str = "x-zorai-provider";

/// How many hosts were asked until one answered.
pub const ATTEMPTS_HEADER: &str = "x-zorai-attempts";

/// How long the request waited for a free slot, in milliseconds.
pub const QUEUE_HEADER: &str = "x-zorai-queue-ms";

/// What an answer costs, in the settlement token's smallest unit; on answers that are not streamed and say what they used.
pub const COST_HEADER: &str = "x-zorai-cost";

/// How long the whole request may take, in milliseconds: a header of requests, bounded by the relay's own deadline.
pub const TIMEOUT_HEADER: &str = "x-zorai-timeout-ms";

/// How long a host may take until its answer's first byte, in milliseconds: a header of requests, bounded as the one before.
pub const FIRST_BYTE_HEADER: &str = "x-zorai-first-byte-timeout-ms";

/// How long a host may pause within its answer, in milliseconds: a header of requests, bounded as the one before.
pub const TOKEN_HEADER: &str = "x-zorai-token-timeout-ms";

/// How long a request may wait for a host that can take it, in seconds: a header of requests, bounded by the relay.
pub const QUEUE_TIMEOUT_HEADER: &str = "x-queue-timeout";

/// The most models that a request may name to fall back to.
pub const MAX_FALLBACKS: usize = 8;

/// The most entries of each list of a request's preferences.
pub const MAX_PREFERRED: usize = 64;

/// The most models of one host.
pub const MAX_MODELS: usize = 256;

/// The longest id of a model, in bytes.
pub const MAX_MODEL_ID_BYTES: usize = 256;

/// A model that an engine of a host serves now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelOffer {
    /// Its id, as requests name it.
    pub id: String,
    /// What runs it: `llama.cpp`, `vllm`, `ollama`, `embedded`…
    pub engine: String,
    /// Its quantisation, such as `q4_k_m`; empty where unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quantization: String,
    /// Its context window, in tokens, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
    /// Requests that the engine works on at once.
    pub slots: u32,
    /// Requests that it works on now.
    pub busy: u32,
    /// What can be asked of it.
    pub kinds: Vec<InferenceKind>,
    /// Whether the engine has it in memory, where the engine tells; where it does not, it counts as being there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<bool>,
    /// What the provider asks for a million prompt tokens, in the settlement token's smallest unit. Zero from the node: the agent sets it.
    #[serde(default)]
    pub prompt_price: Amount,
    /// What the provider asks for a million completion tokens.
    #[serde(default)]
    pub completion_price: Amount,
}

/// What can be asked of a model: one of OpenAI's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InferenceKind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/responses`.
    Responses,
}

impl InferenceKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Embeddings, Self::Responses];

    /// The path of its endpoint.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
        }
    }
}

/// What of a request's body is for the relay. All other fields are the engine's and pass as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InferenceRequest {
    /// The model.
    pub model: String,
    /// Models to fall back to, in this order, where nobody can serve the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 8)))]
    pub models: Option<Vec<String>>,
    /// Whether the answer is to come piece by piece, as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Which providers to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Preferences>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// Which providers a request may go to, in OpenRouter's shape.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Preferences {
    /// These first, in this order.
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub order: Vec<Provider>,
    /// These only, where any are named.
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub only: Vec<Provider>,
    /// None of these.
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub ignore: Vec<Provider>,
    /// Whether others than those of `order` may be asked; yes unless said otherwise.
    pub allow_fallbacks: Option<bool>,
    /// What comes first; otherwise load, speed and price are weighed.
    pub sort: Option<Sort>,
    /// The highest prices.
    pub max_price: Option<MaxPrice>,
    /// Of these quantisations only, where any are named.
    #[cfg_attr(feature = "schema", schemars(length(max = 64)))]
    pub quantizations: Vec<String>,
    /// Hosts that lately took longer until their first byte, in seconds, come last.
    pub preferred_max_latency: Option<f64>,
}

/// What a request wants most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// The lowest price.
    Price,
    /// The most tokens a second.
    Throughput,
    /// The shortest time until the first byte.
    Latency,
}

/// The highest prices for a million tokens, in the settlement token's smallest unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct MaxPrice {
    /// For tokens in.
    pub prompt: Option<Amount>,
    /// For tokens out.
    pub completion: Option<Amount>,
}

/// The answer of `GET /v1/models`: the models that connected hosts serve, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models, 10,000 at most.
    pub data: Vec<ModelView>,
}

/// A model that connected hosts serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelView {
    /// Its id, as requests name it.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Since when it is served here, in seconds from 1970-01-01 UTC.
    pub created: u64,
    /// Always `zorai`: providers serve it.
    pub owned_by: String,
    /// How many hosts serve it.
    pub hosts: u32,
    /// The largest context window among them, in tokens, where known.
    #[serde(default)]
    pub context_tokens: Option<u32>,
    /// What can be asked of it.
    pub kinds: Vec<InferenceKind>,
    /// Its quantisations, where known.
    pub quantizations: Vec<String>,
    /// The lowest price of a million prompt tokens.
    pub prompt_price: Amount,
    /// The lowest price of a million completion tokens.
    pub completion_price: Amount,
}

/// Where the relay has its count of tokens from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// A `usage` block of the engine's answer.
    Usage,
    /// The pieces of the stream that carry text were counted; tokens in are those of a receipt that holds, if there is one.
    Deltas,
}

/// What an engine says that an answer used: its `usage` block. Chat and completions name the counts one way, responses another, and
/// some engines both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EngineUsage {
    /// Tokens in, as chat and completions say it.
    pub prompt_tokens: Option<u64>,
    /// Tokens in, as responses say it.
    pub input_tokens: Option<u64>,
    /// Tokens out, as chat and completions say it.
    pub completion_tokens: Option<u64>,
    /// Tokens out, as responses say it.
    pub output_tokens: Option<u64>,
}

impl EngineUsage {
    /// Tokens in and out; `None` where it says neither.
    pub fn tokens(self) -> Option<(u64, u64)> {
        let prompt = self.prompt_tokens.or(self.input_tokens);
        let completion = self.completion_tokens.or(self.output_tokens);
        (prompt.is_some() || completion.is_some())
            .then(|| (prompt.unwrap_or_default(), completion.unwrap_or_default()))
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of the answer was passed on.
    Completed,
    /// The answer broke off or was cut off, or its engine said in it that it failed.
    Failed,
    /// The client left.
    Cancelled,
}

/// The answer of `GET /v1/receipts/{request_id}`: what the relay saw of a request, and the provider's signed word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReceiptView {
    /// The request's `x-request-id`.
    pub request_id: String,
    /// When it came.
    pub at: Timestamp,
    /// What was asked.
    pub kind: InferenceKind,
    /// The model that served it.
    pub model: String,
    /// The provider that served it.
    #[serde(with = "eip55")]
    #[cfg_attr(feature = "schema", schemars(with = "taskmarket::Provider"))]
    pub provider: Address,
    /// On which host.
    pub node_id: Bytes32,
    /// How it ended.
    pub outcome: Outcome,
    /// Hosts that were asked.
    pub attempts: u32,
    /// Time until the first byte of the answer came to the relay, from when the host was asked, in milliseconds.
    pub first_byte_ms: u64,
    /// Time until its last, in milliseconds.
    pub total_ms: u64,
    /// Tokens in, by the relay's count.
    pub prompt_tokens: u64,
    /// Tokens out, by the relay's count.
    pub completion_tokens: u64,
    /// Where that count is from.
    pub usage_source: UsageSource,
    /// What it costs by that count and the provider's prices, rounded up, in the settlement token's smallest unit.
    pub cost: Amount,
    /// What the provider asked for a million prompt tokens; records of earlier versions lack it.
    #[serde(default)]
    pub prompt_price: Option<Amount>,
    /// What the provider asked for a million completion tokens.
    #[serde(default)]
    pub completion_price: Option<Amount>,
    /// The provider's receipt, where it came, its signature holds and it says of request and answer what the relay saw.
    #[serde(default)]
    pub receipt: Option<SignedMutation<InferenceReceipt>>,
    /// Why there is no receipt.
    #[serde(default)]
    pub fault: Option<String>,
}
