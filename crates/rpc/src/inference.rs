//! Inference through the relay: what models hosts serve, and what passes between relay and agent beside the engine's own bytes.
//!
//! The relay sends a client's request on over the link, `POST /v1/chat/completions` and its siblings, with the body as it came, the
//! header `x-request-id`, and [`MODEL_HEADER`]. The agent's answer is the engine's, byte for byte, and ends with a trailer
//! [`RECEIPT_TRAILER`]: the JSON of a [`SignedMutation`](crate::tasks::SignedMutation)`<InferenceReceipt>`. `request_hash` and
//! `response_hash` in it are SHA-256 of the bodies as they crossed the link.

use serde::{Deserialize, Serialize};
use taskmarket::Amount;

/// Names the model that the relay chose, so that nobody has to read the body for it.
pub const MODEL_HEADER: &str = "x-zorai-model";

/// The trailer with the signed receipt.
pub const RECEIPT_TRAILER: &str = "x-zorai-receipt";

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
