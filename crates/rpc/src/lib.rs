//! Every message that crosses a wire of the market, as one type each, so that no two programs can disagree about a field.
//!
//! - [`tasks`]: publishing, changing, listing and following tasks (REST, and JSON-RPC's parameters).
//! - [`relay`]: what a relay says of itself, of its providers and of the market.
//! - [`link`]: the handshake of a provider's connection, and what the relay asks over it.
//! - [`node`]: the compute node's API on its provider's host.
//! - `market`: the market's JSON-RPC methods; with the features `client` and `server`.
//! - [`evidence`]: a task's history as a document for others, and its check.
//! - [`keys`]: API keys and their use.
//! - [`inference`]: the models that hosts serve, and receipts.
//! - [`chat_task`]: tasks on the chat endpoint.
//! - [`error`]: the one shape of an error.
//! - [`failure`]: why attempts fail, by whose making, and what helps.

pub mod chat_task;
pub mod error;
pub mod evidence;
pub mod inference;
pub mod keys;
pub mod link;
#[cfg(any(feature = "client", feature = "server"))]
pub mod market;
pub mod node;
pub mod relay;
pub mod tasks;

pub use taskmarket::failure;

/// The path on which providers connect.
pub const PROVIDER_CONNECT_PATH: &str = "/v1/provider/connect";
/// The response header that carries a request's id.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// The request header by which a task's requester or provider asks to read it without an API key: the JSON of a
/// [`SignedMutation`](tasks::SignedMutation)`<`[`ReadTask`](taskmarket::ReadTask)`>`, signed under the unsettled domain.
pub const READ_HEADER: &str = "x-zorai-read";

/// The header of a `HEAD` for an artifact that is not stored: how many bytes came of the caller's upload that broke off. It goes on with a
/// `PUT` of the rest and `Content-Range`. The name is that of the IETF's draft of resumable uploads.
pub const UPLOAD_OFFSET_HEADER: &str = "upload-offset";
/// The response header of a result that carries its SHA-256, 64 hex digits.
pub const RESULT_HASH_HEADER: &str = "x-result-hash";
/// The response header of logs that names the attempt which they are of.
pub const ATTEMPT_HEADER: &str = "x-attempt";
