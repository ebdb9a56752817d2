//! The calls of inference.

use http::StatusCode;
use rpc::chat_task::ChatTaskAnswer;
use rpc::error::ErrorCode;
use rpc::inference::{
    FIRST_BYTE_HEADER, InferenceKind, InferenceRequest, ModelList, ModelView, QUEUE_TIMEOUT_HEADER,
    ReceiptView, TIMEOUT_HEADER, TOKEN_HEADER,
};
use serde_json::{Map, Value};
use store::Scope;

use super::operation::{Document, EVENT_STREAM, Operation};

/// What calls of inference may answer besides.
const OF_INFERENCE: &[ErrorCode] = &[
    ErrorCode::ModelNotFound,
    ErrorCode::AnswerNotKept,
    ErrorCode::NoProviderAvailable,
    ErrorCode::DeadlineExceeded,
];

/// What a call answers that may be a task.
fn of_tasks(call: Operation<'_>) -> Operation<'_> {
    let accepted = "The task, to a body that is a task and asks for background.";
    call.answers::<ChatTaskAnswer>(StatusCode::ACCEPTED, accepted).fails(&[
        ErrorCode::SignatureRequired,
        ErrorCode::InvalidSignature,
        ErrorCode::UnknownDomain,
        ErrorCode::TaskFailed,
        ErrorCode::TaskExpired,
    ])
}

/// Describes all of them.
pub(super) fn describe(document: &mut Document) {
    for kind in InferenceKind::ALL {
        let (id, summary) = match kind {
            InferenceKind::Chat => {
                ("createChatCompletion", "Goes on with a conversation, as OpenAI's call does")
            }
            InferenceKind::Completions => ("createCompletion", "Goes on with a text, as OpenAI's call does"),
            InferenceKind::Embeddings => ("createEmbedding", "Embeds texts, as OpenAI's call does"),
            InferenceKind::Responses => ("createResponse", "Answers an input, as OpenAI's call does"),
        };
        let call = document.call("post", kind.path(), id, summary);
        let call = match kind {
            InferenceKind::Chat => of_tasks(call),
            InferenceKind::Completions | InferenceKind::Embeddings | InferenceKind::Responses => call,
        };
        call.key(Scope::Inference)
            .header::<u64>(TIMEOUT_HEADER)
            .header::<u64>(FIRST_BYTE_HEADER)
            .header::<u64>(TOKEN_HEADER)
            .header::<u64>(QUEUE_TIMEOUT_HEADER)
            .body::<InferenceRequest>()
            .answers::<Map<String, Value>>(StatusCode::OK, "The engine's answer.")
            .answers_as(StatusCode::OK, "The engine's answer.", EVENT_STREAM)
            .fails(OF_INFERENCE)
            .end();
    }
    document
        .call("get", "/v1/models", "listModels", "The models that connected hosts serve")
        .key(Scope::Inference)
        .answers::<ModelList>(StatusCode::OK, "The models.")
        .end();
    document
        .call(
            "get",
            "/v1/models/{id}",
            "getModel",
            "A model that connected hosts serve; its id may hold slashes",
        )
        .key(Scope::Inference)
        .path::<String>("id")
        .answers::<ModelView>(StatusCode::OK, "The model.")
        .fails(&[ErrorCode::ModelNotFound])
        .end();
    document
        .call(
            "get",
            "/v1/receipts/{request_id}",
            "getReceipt",
            "What became of an inference request, with the provider's signed receipt",
        )
        .any_key()
        .path::<String>("request_id")
        .answers::<ReceiptView>(StatusCode::OK, "The record.")
        .end();
}
