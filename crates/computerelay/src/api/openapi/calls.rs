//! Every REST call: who may make it, what it takes and what it may answer.

use http::StatusCode;
use rpc::error::ErrorCode;
use rpc::evidence::Evidence;
use rpc::keys::{CreateKey, CreatedKey, KeyList, KeyView, UsagePage, UsageQuery};
use rpc::relay::{
    Info, LogQuery, MarketStats, PageQuery, ProviderList, ProviderReport, RefreshNode, SessionList,
};
use rpc::tasks::{
    EventQuery, EventView, Explanation, FollowedEvent, PublishTask, PublishedTask, SignedMutation,
    TaskHistory, TaskPage, TaskQuery, TaskView, WebhookList, WebhookReplay,
};
use schemars::JsonSchema;
use serde_json::{Map, Value};
use store::Scope;
use taskmarket::{
    AcceptTask, ApproveResult, CancelTask, ComputeProof, ContentHash, DisputeTask, FailTask, Provider,
    ResolveDispute, TaskId, UpdateNodeStatus,
};

use super::inference;
use super::operation::{Document, Operation};

const OK: StatusCode = StatusCode::OK;
const CREATED: StatusCode = StatusCode::CREATED;
const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;

const BYTES: &str = "application/octet-stream";
const LINES: &str = "application/x-ndjson";
const TEXT: &str = "text/plain";

/// Describes all of them.
pub(super) fn describe(document: &mut Document) {
    tasks(document);
    mutations(document);
    artifacts(document);
    providers(document);
    keys(document);
    inference::describe(document);
    overview(document);
    json_rpc(document);
}

fn tasks(document: &mut Document) {
    document
        .call("post", "/v1/tasks", "publishTask", "Publishes a signed task")
        .key(Scope::TasksWrite)
        .body::<PublishTask>()
        .answers::<PublishedTask>(CREATED, "It is new.")
        .answers::<PublishedTask>(OK, "It is there already.")
        .fails(&[ErrorCode::InvalidSignature, ErrorCode::UnknownDomain])
        .end();
    document
        .call("get", "/v1/tasks", "listTasks", "Tasks, newest first")
        .key(Scope::TasksRead)
        .query::<TaskQuery>()
        .answers::<TaskPage>(OK, "A page.")
        .fails(&[ErrorCode::InvalidField])
        .end();
    document
        .call(
            "get",
            "/v1/tasks/{id}",
            "getTask",
            "A task: whole to the key that published it, its requirements and money to others",
        )
        .key_or_signature()
        .path::<TaskId>("id")
        .answers::<TaskView>(OK, "The task.")
        .end();
    document
        .call(
            "get",
            "/v1/tasks/{id}/events",
            "getEvents",
            "A task's history; as an event stream, history and then live",
        )
        .key_or_signature()
        .path::<TaskId>("id")
        .header::<u64>("Last-Event-ID")
        .answers::<TaskHistory>(OK, "The history.")
        .streams::<EventView>(OK, "The history.")
        .empty(NO_CONTENT, "The task is final, and nothing is left to stream.")
        .end();
    document
        .call("get", "/v1/events", "followRequester", "The events of all tasks of a requester, live")
        .key(Scope::TasksRead)
        .query::<EventQuery>()
        .header::<u64>("Last-Event-ID")
        .streams::<FollowedEvent>(OK, "The events, after one that says from where they are told.")
        .end();
    document
        .call("get", "/v1/tasks/{id}/evidence", "getEvidence", "A task's signed history, for others to check")
        .key_or_signature()
        .path::<TaskId>("id")
        .answers::<Evidence>(OK, "The evidence.")
        .end();
    webhooks(document);
    document
        .call(
            "get",
            "/v1/tasks/{id}/explain",
            "explainTask",
            "Why a task waits: each host, and what excludes it",
        )
        .key_or_signature()
        .path::<TaskId>("id")
        .answers::<Explanation>(OK, "The explanation.")
        .end();
    document
        .call(
            "get",
            "/v1/tasks/{id}/logs",
            "readLogs",
            "What the newest attempt said, from the host that runs it: a line of JSON for each line",
        )
        .key_or_signature()
        .path::<TaskId>("id")
        .query::<LogQuery>()
        .answers_as(
            OK,
            "The lines, {\"n\": number, \"stream\": \"stdout\" or \"stderr\", \"text\": text}, with x-attempt; empty lines are signs of life.",
            LINES,
        )
        .fails(&[ErrorCode::Conflict, ErrorCode::NoSession])
        .end();
    blob(
        document
            .call("get", "/v1/tasks/{id}/result", "getResult", "A result's bytes, with x-result-hash")
            .key_or_signature()
            .path::<TaskId>("id")
            .fails(&[ErrorCode::Conflict]),
    )
    .end();
}

fn webhooks(document: &mut Document) {
    document
        .call(
            "get",
            "/v1/tasks/{id}/webhooks",
            "listWebhooks",
            "Where a task's events are sent to, and how far that has come",
        )
        .key(Scope::TasksRead)
        .path::<TaskId>("id")
        .answers::<WebhookList>(OK, "The webhooks.")
        .end();
    document
        .call(
            "post",
            "/v1/tasks/{id}/webhooks/replay",
            "replayWebhooks",
            "Sends all of a task's events to its webhooks again",
        )
        .key(Scope::TasksWrite)
        .path::<TaskId>("id")
        .answers::<WebhookReplay>(OK, "How many webhooks there are.")
        .end();
}

fn mutations(document: &mut Document) {
    mutation::<CancelTask>(
        document,
        "/v1/tasks/{id}/cancel",
        "cancelTask",
        "The requester withdraws a task that nobody holds",
    );
    mutation::<AcceptTask>(
        document,
        "/v1/tasks/{id}/accept",
        "acceptTask",
        "A provider binds itself to run an attempt",
    );
    mutation::<FailTask>(document, "/v1/tasks/{id}/fail", "failTask", "A provider gives an attempt up");
    mutation::<ComputeProof>(
        document,
        "/v1/tasks/{id}/proof",
        "submitProof",
        "A provider proves what it computed",
    );
    mutation::<ApproveResult>(
        document,
        "/v1/tasks/{id}/approve",
        "approveResult",
        "The requester takes a result as good",
    );
    mutation::<DisputeTask>(
        document,
        "/v1/tasks/{id}/dispute",
        "disputeTask",
        "The requester disputes a result",
    );
    mutation::<ResolveDispute>(
        document,
        "/v1/tasks/{id}/resolve",
        "resolveDispute",
        "The arbiter ends a dispute",
    );
}

fn mutation<M: JsonSchema>(
    document: &mut Document,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
) {
    document
        .call("post", path, id, summary)
        .maybe_key()
        .path::<TaskId>("id")
        .body::<SignedMutation<M>>()
        .answers::<TaskView>(OK, "The task after it.")
        .fails(&[
            ErrorCode::InvalidSignature,
            ErrorCode::WrongParty,
            ErrorCode::Conflict,
            ErrorCode::StaleAttempt,
            ErrorCode::NoSession,
            ErrorCode::ResultMissing,
        ])
        .end();
}

fn artifacts(document: &mut Document) {
    const PATH: &str = "/v1/artifacts/{sha256}";
    blob(
        document
            .call("get", PATH, "getArtifact", "An artifact's bytes")
            .key_or_signature()
            .token()
            .path::<ContentHash>("sha256"),
    )
    .end();
    document
        .call("head", PATH, "headArtifact", "Whether an artifact is stored, and how long it is")
        .key_or_signature()
        .token()
        .path::<ContentHash>("sha256")
        .empty(OK, "It is stored.")
        .end();
    document
        .call("put", PATH, "putArtifact", "Stores an artifact under the SHA-256 of its bytes")
        .key(Scope::TasksWrite)
        .token()
        .path::<ContentHash>("sha256")
        .header::<String>("content-range")
        .bytes()
        .empty(CREATED, "It is stored.")
        .empty(OK, "It was stored already.")
        .fails(&[ErrorCode::HashMismatch, ErrorCode::QuotaExceeded, ErrorCode::RangeNotSatisfiable])
        .end();
}

/// What an answer of bytes may be.
fn blob(operation: Operation<'_>) -> Operation<'_> {
    operation
        .header::<String>("Range")
        .header::<String>("If-Range")
        .header::<String>("If-None-Match")
        .answers_as(OK, "The bytes.", BYTES)
        .answers_as(StatusCode::PARTIAL_CONTENT, "The range of them that was asked for.", BYTES)
        .empty(StatusCode::NOT_MODIFIED, "The client has them.")
        .fails(&[ErrorCode::RangeNotSatisfiable])
}

fn providers(document: &mut Document) {
    document
        .call("get", "/v1/providers", "listProviders", "Who is online, and what they offer")
        .query::<PageQuery>()
        .answers::<ProviderList>(OK, "A page.")
        .fails(&[ErrorCode::InvalidField])
        .end();
    document
        .call(
            "get",
            "/v1/providers/{address}",
            "getProvider",
            "A provider: its hosts that are online, when it was here, and what became of what it took",
        )
        .path::<Provider>("address")
        .answers::<ProviderReport>(OK, "The report.")
        .end();
    document
        .call(
            "get",
            "/v1/providers/{address}/sessions",
            "listSessions",
            "A provider's connections, newest first",
        )
        .path::<Provider>("address")
        .query::<PageQuery>()
        .answers::<SessionList>(OK, "A page.")
        .fails(&[ErrorCode::InvalidField])
        .end();
    document
        .call(
            "post",
            "/v1/providers/{address}/registration",
            "refreshNode",
            "Says anew what the host of an open session offers",
        )
        .path::<Provider>("address")
        .body::<RefreshNode>()
        .empty(NO_CONTENT, "It is known now.")
        .fails(&[ErrorCode::InvalidSignature, ErrorCode::HashMismatch, ErrorCode::NoSession])
        .end();
    document
        .call("post", "/v1/providers/{address}/status", "updateNodeStatus", "Says whether a host takes work")
        .path::<Provider>("address")
        .body::<SignedMutation<UpdateNodeStatus>>()
        .empty(NO_CONTENT, "It is known now.")
        .fails(&[ErrorCode::InvalidSignature, ErrorCode::Conflict])
        .end();
    document
        .call("get", rpc::PROVIDER_CONNECT_PATH, "connectProvider", "The link, a WebSocket: docs/protocol.md")
        .empty(StatusCode::SWITCHING_PROTOCOLS, "The handshake follows.")
        .fails(&[ErrorCode::MalformedRequest, ErrorCode::UpgradeRequired])
        .end();
}

fn keys(document: &mut Document) {
    document
        .call("post", "/v1/keys", "createKey", "Makes an API key; its text is in the answer and nowhere else")
        .key(Scope::Admin)
        .body::<CreateKey>()
        .answers::<CreatedKey>(CREATED, "The key.")
        .end();
    document
        .call("get", "/v1/keys", "listKeys", "The API keys, without their text")
        .key(Scope::Admin)
        .query::<PageQuery>()
        .answers::<KeyList>(OK, "A page.")
        .fails(&[ErrorCode::InvalidField])
        .end();
    document
        .call("get", "/v1/keys/{id}", "getKey", "An API key, without its text")
        .key(Scope::Admin)
        .path::<String>("id")
        .answers::<KeyView>(OK, "The key.")
        .end();
    document
        .call("delete", "/v1/keys/{id}", "revokeKey", "Revokes an API key")
        .key(Scope::Admin)
        .path::<String>("id")
        .answers::<KeyView>(OK, "The key, revoked.")
        .end();
    document
        .call(
            "get",
            "/v1/usage",
            "getUsage",
            "Requests and tokens by day, API key and model: one's own, and all of them to an operator",
        )
        .any_key()
        .query::<UsageQuery>()
        .answers::<UsagePage>(OK, "A page.")
        .fails(&[ErrorCode::InvalidField])
        .end();
}

fn overview(document: &mut Document) {
    document
        .call(
            "get",
            "/v1/info",
            "getInfo",
            "All that a client needs to sign: domains, limits, the relay's clock",
        )
        .answers::<Info>(OK, "What this relay is.")
        .end();
    document
        .call("get", "/v1/stats", "getStats", "The market in numbers")
        .answers::<MarketStats>(OK, "The numbers.")
        .end();
    document.call("get", "/healthz", "healthz", "The process answers").answers_as(OK, "ok", TEXT).end();
    document.call("get", "/readyz", "readyz", "The relay can serve").answers_as(OK, "ready", TEXT).end();
    document
        .call("get", "/metrics", "metrics", "What is counted, for Prometheus")
        .answers_as(OK, "Prometheus' text form.", "application/openmetrics-text")
        .end();
    document
        .call("get", "/openapi.json", "openapi", "This document")
        .answers::<Map<String, Value>>(OK, "This document.")
        .end();
    document
        .call("get", "/openrpc.json", "openrpc", "The OpenRPC document of /rpc")
        .answers::<Map<String, Value>>(OK, "The document.")
        .end();
}

fn json_rpc(document: &mut Document) {
    document
        .call(
            "post",
            "/rpc",
            "callRpc",
            "JSON-RPC 2.0, single or batch: /openrpc.json. Errors have JSON-RPC's shape, whatever the status",
        )
        .maybe_key()
        .body::<Value>()
        .answers::<Value>(OK, "The answer.")
        .empty(NO_CONTENT, "To a notification.")
        .end();
    document
        .call("get", "/rpc", "openRpc", "JSON-RPC 2.0 by WebSocket")
        .maybe_key()
        .empty(StatusCode::SWITCHING_PROTOCOLS, "Calls may follow.")
        .fails(&[ErrorCode::UpgradeRequired])
        .end();
}
