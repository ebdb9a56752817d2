//! How the description of a REST call is put together: what every call of a kind answers is said once, here.

use std::collections::BTreeMap;

use http::StatusCode;
use rpc::error::{ErrorBody, ErrorCode};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use store::Scope;

use crate::api::openrpc::{generator, typed};

pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// What any call may answer.
const ALWAYS: &[ErrorCode] = &[ErrorCode::RateLimited, ErrorCode::Internal, ErrorCode::Unavailable];
/// What a call with parameters in its path may answer.
const OF_PATHS: &[ErrorCode] = &[ErrorCode::MalformedRequest, ErrorCode::NotFound];
/// What a call with a body may answer.
const OF_BODIES: &[ErrorCode] =
    &[ErrorCode::MalformedRequest, ErrorCode::PayloadTooLarge, ErrorCode::RequestTimeout];
/// What a call with JSON may answer besides.
const OF_JSON: &[ErrorCode] = &[ErrorCode::InvalidField, ErrorCode::UnsupportedMediaType];
/// What a POST may answer that carries an idempotency key.
const OF_POSTS: &[ErrorCode] =
    &[ErrorCode::MalformedRequest, ErrorCode::Conflict, ErrorCode::IdempotencyMismatch];
/// What a call with an API key may answer.
const OF_KEYS: &[ErrorCode] = &[ErrorCode::InvalidApiKey, ErrorCode::Forbidden];

/// A description in the making.
pub(super) struct Document {
    generator: SchemaGenerator,
    paths: BTreeMap<&'static str, Map<String, Value>>,
}

impl Document {
    pub(super) fn new() -> Self {
        Self { generator: generator(), paths: BTreeMap::new() }
    }

    /// Describes one more call: its method in lower case, its path, a name for programs, and what it does.
    pub(super) fn call(
        &mut self,
        method: &'static str,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
    ) -> Operation<'_> {
        let tag =
            path.trim_start_matches("/v1/").trim_start_matches('/').split('/').next().unwrap_or_default();
        let value = json!({
            "operationId": id,
            "summary": summary,
            "tags": [tag],
            "parameters": [],
            "responses": {},
            "security": [],
        });
        let operation = Operation { document: self, method, path, value, errors: ALWAYS.to_vec() };
        if method == "post" { operation.idempotent() } else { operation }
    }

    /// The whole.
    pub(super) fn finish(mut self) -> Value {
        let error = typed::<ErrorBody>(&mut self.generator);
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "ZORAI compute market",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "A relay of the market. Every answer carries `x-request-id`.",
                "license": { "name": "Apache-2.0" },
            },
            "servers": [{ "url": "/" }],
            "paths": self.paths,
            "components": {
                "schemas": self.generator.take_definitions(true),
                "responses": {
                    "Error": {
                        "description": "What went wrong.",
                        "content": { "application/json": { "schema": error } },
                    },
                },
                "securitySchemes": {
                    "apiKey": { "type": "http", "scheme": "bearer", "description": "An API key." },
                    "attemptToken": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The attempt token of an assignment, until the attempt ends.",
                    },
                },
            },
        })
    }
}

/// The description of one call.
#[must_use]
pub(super) struct Operation<'a> {
    document: &'a mut Document,
    method: &'static str,
    path: &'static str,
    value: Value,
    errors: Vec<ErrorCode>,
}

impl Operation<'_> {
    /// It takes an API key of this scope.
    pub(super) fn key(self, scope: Scope) -> Self {
        self.secured("apiKey", &[scope.as_str()]).fails(OF_KEYS)
    }

    /// It takes any API key.
    pub(super) fn any_key(self) -> Self {
        self.secured("apiKey", &[]).fails(OF_KEYS)
    }

    /// It takes an attempt token too.
    pub(super) fn token(self) -> Self {
        self.secured("attemptToken", &[])
    }

    /// It takes an API key that reads tasks, or the signature of one of the task's parties.
    pub(super) fn key_or_signature(self) -> Self {
        let errors = [ErrorCode::InvalidField, ErrorCode::InvalidSignature, ErrorCode::WrongParty];
        let mut operation = self.key(Scope::TasksRead).header::<String>(rpc::READ_HEADER).fails(&errors);
        push(&mut operation.value["security"], json!({}));
        operation
    }

    /// It tells more to the holder of an API key.
    pub(super) fn maybe_key(mut self) -> Self {
        self = self.secured("apiKey", &[]);
        push(&mut self.value["security"], json!({}));
        self
    }

    fn secured(mut self, scheme: &str, scopes: &[&str]) -> Self {
        push(&mut self.value["security"], json!({ scheme: scopes }));
        self
    }

    /// A parameter of the path.
    pub(super) fn path<T: JsonSchema>(self, name: &str) -> Self {
        self.parameter::<T>("path", name, true).fails(OF_PATHS)
    }

    /// An optional header.
    pub(super) fn header<T: JsonSchema>(self, name: &str) -> Self {
        self.parameter::<T>("header", name, false)
    }

    fn parameter<T: JsonSchema>(mut self, place: &str, name: &str, is_required: bool) -> Self {
        let schema = typed::<T>(&mut self.document.generator);
        let parameter = json!({ "in": place, "name": name, "required": is_required, "schema": schema });
        push(&mut self.value["parameters"], parameter);
        self
    }

    /// The query: every field of a type.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        let schema = T::json_schema(&mut self.document.generator).to_value();
        let required: Vec<_> = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let (mut field, is_required) = (without_null(field.clone()), required.contains(&json!(name)));
            let description = field.as_object_mut().and_then(|field| field.remove("description"));
            let mut parameter =
                json!({ "in": "query", "name": name, "required": is_required, "schema": field });
            if let Some(description) = description {
                parameter["description"] = description;
            }
            push(&mut self.value["parameters"], parameter);
        }
        self.fails(&[ErrorCode::MalformedRequest])
    }

    /// A body of JSON.
    pub(super) fn body<T: JsonSchema>(mut self) -> Self {
        let schema = typed::<T>(&mut self.document.generator);
        let content = json!({ "application/json": { "schema": schema } });
        self.value["requestBody"] = json!({ "required": true, "content": content });
        self.fails(OF_BODIES).fails(OF_JSON)
    }

    /// A body of bytes.
    pub(super) fn bytes(mut self) -> Self {
        let content = json!({ "application/octet-stream": {} });
        self.value["requestBody"] = json!({ "required": true, "content": content });
        self.fails(OF_BODIES)
    }

    fn idempotent(self) -> Self {
        self.header::<String>("Idempotency-Key").fails(OF_POSTS)
    }

    /// It may answer JSON under this status.
    pub(super) fn answers<T: JsonSchema>(self, status: StatusCode, what: &str) -> Self {
        let schema = typed::<T>(&mut self.document.generator);
        self.content(status, what, "application/json", json!({ "schema": schema }))
    }

    /// It may answer in another form under this status.
    pub(super) fn answers_as(self, status: StatusCode, what: &str, form: &str) -> Self {
        self.content(status, what, form, json!({}))
    }

    /// It may answer a stream of server-sent events under this status, whose data are JSON. The schema is each event's.
    pub(super) fn streams<T: JsonSchema>(self, status: StatusCode, what: &str) -> Self {
        let data = typed::<T>(&mut self.document.generator);
        let schema = json!({
            "type": "object",
            "description": "Each event.",
            "properties": {
                "event": { "type": "string", "description": "What happened, in a word." },
                "id": { "type": "string", "description": "What the stream resumes after." },
                "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": data },
            },
            "required": ["event", "data"],
        });
        self.content(status, what, EVENT_STREAM, json!({ "schema": schema }))
    }

    /// It may answer nothing but this status.
    pub(super) fn empty(mut self, status: StatusCode, what: &str) -> Self {
        self.value["responses"][status.as_str()] = json!({ "description": what });
        self
    }

    fn content(mut self, status: StatusCode, what: &str, form: &str, content: Value) -> Self {
        let response = &mut self.value["responses"][status.as_str()];
        response["description"] = what.into();
        response["content"][form] = content;
        self
    }

    /// It may fail like this, besides what any call of its kind may.
    pub(super) fn fails(mut self, codes: &[ErrorCode]) -> Self {
        self.errors.extend(codes);
        self
    }

    /// Puts it into the document.
    pub(super) fn end(mut self) {
        let mut codes: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        for code in ErrorCode::ALL.iter().filter(|code| self.errors.contains(code)) {
            codes.entry(code.http_status()).or_default().push(code.as_str());
        }
        for (status, words) in codes {
            self.value["responses"][status.to_string()] = json!({
                "description": words.join(", "),
                "$ref": "#/components/responses/Error",
            });
        }
        self.document.paths.entry(self.path).or_default().insert(self.method.to_owned(), self.value);
    }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// A field's schema where absence is said by leaving the field out.
fn without_null(mut schema: Value) -> Value {
    if let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|one| one != "null");
        if let [one] = &types[..] {
            schema["type"] = one.clone();
        }
    }
    if let Some(any) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        any.retain(|one| one["type"] != "null");
        if let [one] = &mut any[..] {
            let one = one.take();
            if let (Some(schema), Value::Object(one)) = (schema.as_object_mut(), one) {
                schema.remove("anyOf");
                schema.extend(one);
            }
        }
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("default");
    }
    schema
}
