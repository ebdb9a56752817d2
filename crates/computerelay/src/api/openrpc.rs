//! The JSON-RPC methods as a machine reads of them: an OpenRPC document, made from the list that calls are checked by.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use rpc::error::{CallErrorData, ErrorCode};
use rpc::relay::MarketStats;
use rpc::tasks::{Contract, OpenTasksFilter, TaskPage, TaskView};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use store::Scope;
use taskmarket::{AcceptTask, ComputeProof, RegisterNode, Signature, Task, TaskId, UpdateNodeStatus};

use super::extract::parse;
use crate::error::ApiError;

/// The method that answers the document.
pub(super) const DISCOVER: &str = "rpc.discover";
/// Where schemas stand, in this document and in that of the REST calls.
pub(super) const SCHEMAS: &str = "/components/schemas";

/// A method.
pub(super) struct Method {
    pub(super) name: &'static str,
    summary: &'static str,
    pub(super) access: Access,
    params: &'static [Param],
    result: Typed,
    /// What it may answer besides what any method may.
    errors: &'static [ErrorCode],
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The holders of an API key of this scope.
    Key(Scope),
    /// Anybody with the right signature among the parameters.
    Signature,
    /// Anybody.
    Anybody,
}

impl Access {
    /// Whether such a call may change something.
    pub(super) fn may_change(self) -> bool {
        match self {
            Self::Key(Scope::TasksWrite | Scope::Inference | Scope::Admin) | Self::Signature => true,
            Self::Key(Scope::TasksRead) | Self::Anybody => false,
        }
    }
}

struct Param {
    name: &'static str,
    is_required: bool,
    schema: Typed,
    check: fn(&[u8]) -> Result<(), ApiError>,
}

/// Adds a type's schema to a document and answers what refers to it.
type Typed = fn(&mut SchemaGenerator) -> Schema;

const fn required<T: JsonSchema + DeserializeOwned>(name: &'static str) -> Param {
    Param { name, is_required: true, schema: typed::<T>, check: check::<T> }
}

const fn optional<T: JsonSchema + DeserializeOwned>(name: &'static str) -> Param {
    Param { name, is_required: false, schema: typed::<T>, check: check::<Option<T>> }
}

pub(super) fn typed<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn check<T: DeserializeOwned>(json: &[u8]) -> Result<(), ApiError> {
    parse::<T>(json).map(drop)
}

const WRONG_MESSAGE: &[ErrorCode] = &[
    ErrorCode::InvalidField,
    ErrorCode::InvalidSignature,
    ErrorCode::WrongParty,
    ErrorCode::NotFound,
    ErrorCode::Conflict,
    ErrorCode::StaleAttempt,
    ErrorCode::NoSession,
    ErrorCode::ResultMissing,
];
const WRONG_NODE: &[ErrorCode] = &[
    ErrorCode::InvalidField,
    ErrorCode::InvalidSignature,
    ErrorCode::HashMismatch,
    ErrorCode::Conflict,
    ErrorCode::NoSession,
];

/// All methods: those of `rpc::market::Market`, and the one that answers this document.
pub(super) static METHODS: &[Method] = &[
    Method {
        name: "zor_publishTask",
        summary: "Publishes a signed task, as POST /v1/tasks does, and answers its id, also if it is there already.",
        access: Access::Key(Scope::TasksWrite),
        params: &[
            required::<Task>("task"),
            required::<Signature>("signature"),
            optional::<Contract>("verifying_contract"),
        ],
        result: typed::<TaskId>,
        errors: &[ErrorCode::InvalidField, ErrorCode::InvalidSignature, ErrorCode::UnknownDomain],
    },
    Method {
        name: "zor_acceptTask",
        summary: "Takes a provider's word that it runs an attempt, as POST /v1/tasks/{id}/accept does.",
        access: Access::Signature,
        params: &[required::<AcceptTask>("accept"), required::<Signature>("signature")],
        result: typed::<TaskView>,
        errors: WRONG_MESSAGE,
    },
    Method {
        name: "zor_submitProof",
        summary: "Takes a proof, as POST /v1/tasks/{id}/proof does.",
        access: Access::Signature,
        params: &[required::<ComputeProof>("proof"), required::<Signature>("signature")],
        result: typed::<TaskView>,
        errors: WRONG_MESSAGE,
    },
    Method {
        name: "zor_getTaskStatus",
        summary: "The task, as GET /v1/tasks/{id} shows it.",
        access: Access::Key(Scope::TasksRead),
        params: &[required::<TaskId>("task_id")],
        result: typed::<TaskView>,
        errors: &[ErrorCode::NotFound],
    },
    Method {
        name: "zor_registerNode",
        summary: "Says anew what the host of an open session offers, as POST /v1/providers/{address}/registration does.",
        access: Access::Signature,
        params: &[
            required::<RegisterNode>("registration"),
            required::<String>("metadata"),
            required::<Signature>("signature"),
        ],
        result: typed::<()>,
        errors: WRONG_NODE,
    },
    Method {
        name: "zor_updateNodeStatus",
        summary: "Says whether a host takes work, as POST /v1/providers/{address}/status does.",
        access: Access::Signature,
        params: &[required::<UpdateNodeStatus>("update"), required::<Signature>("signature")],
        result: typed::<()>,
        errors: WRONG_NODE,
    },
    Method {
        name: "zor_getOpenTasks",
        summary: "Tasks that nobody holds, newest first, as GET /v1/tasks?status=open lists them.",
        access: Access::Key(Scope::TasksRead),
        params: &[optional::<OpenTasksFilter>("filter"), optional::<String>("cursor")],
        result: typed::<TaskPage>,
        errors: &[ErrorCode::InvalidField],
    },
    Method {
        name: "zor_getMarketStats",
        summary: "The market in numbers, as GET /v1/stats has them.",
        access: Access::Anybody,
        params: &[],
        result: typed::<MarketStats>,
        errors: &[],
    },
    Method {
        name: DISCOVER,
        summary: "This document.",
        access: Access::Anybody,
        params: &[],
        result: typed::<Map<String, Value>>,
        errors: &[],
    },
];

impl Method {
    /// Checks the parameters of a call, by name or by position: none that is not known, none missing, each of its type.
    ///
    /// # Errors
    /// 400, which names the parameter and the field in it.
    pub(super) fn check(&self, params: Option<&RawValue>) -> Result<(), ApiError> {
        let text = params.map_or("[]", RawValue::get);
        let mut given = vec![None; self.params.len()];
        if text.starts_with('{') {
            let named: Pairs<'_> = parse_shape(text)?;
            for (name, value) in named.0 {
                let Some(place) = self.params.iter().position(|param| param.name == name) else {
                    return Err(malformed(&name, &format_args!("there is no such parameter")));
                };
                if given[place].replace(value).is_some() {
                    return Err(malformed(&name, &format_args!("it is given twice")));
                }
            }
        } else {
            let listed: Vec<&RawValue> = parse_shape(text)?;
            if listed.len() > self.params.len() {
                let message = format_args!("there are {} at most, not {}", self.params.len(), listed.len());
                return Err(malformed("params", &message));
            }
            for (place, value) in listed.into_iter().enumerate() {
                given[place] = Some(value);
            }
        }
        for (param, value) in self.params.iter().zip(given) {
            match value {
                Some(value) => {
                    (param.check)(value.get().as_bytes()).map_err(|error| error.within(param.name))?
                }
                None if param.is_required => {
                    return Err(malformed(param.name, &format_args!("it is missing")));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn describe(&self, generator: &mut SchemaGenerator) -> Value {
        let (access, key) = match self.access {
            Access::Key(Scope::TasksWrite) => ("An API key with the scope tasks:write.", true),
            Access::Key(_) => ("An API key with the scope tasks:read.", true),
            Access::Signature => ("The signature; no API key.", false),
            Access::Anybody => ("Anybody.", false),
        };
        let params = self.params.iter().map(|param| {
            let schema = (param.schema)(generator);
            json!({ "name": param.name, "required": param.is_required, "schema": schema })
        });
        json!({
            "name": self.name,
            "summary": self.summary,
            "description": access,
            "paramStructure": "either",
            "params": params.collect::<Vec<_>>(),
            "result": { "name": "result", "schema": (self.result)(generator) },
            "errors": self.errors(key),
        })
    }

    /// Every error that a call may be answered with, a code once.
    fn errors(&self, is_keyed: bool) -> Vec<Value> {
        let keyed: &[_] = if is_keyed { &[ErrorCode::InvalidApiKey, ErrorCode::Forbidden] } else { &[] };
        let always = [
            ErrorCode::MalformedRequest,
            ErrorCode::RateLimited,
            ErrorCode::Internal,
            ErrorCode::Unavailable,
        ];
        let all: Vec<_> = always.iter().chain(keyed).chain(self.errors).collect();
        let codes: BTreeSet<_> = all.iter().map(|code| code.rpc_code()).collect();
        let describe = |code| {
            let words = all.iter().filter(|one| one.rpc_code() == code).map(|one| one.as_str());
            json!({ "code": code, "message": words.collect::<Vec<_>>().join(", ") })
        };
        codes.into_iter().map(describe).collect()
    }
}

fn malformed(param: &str, what: &fmt::Arguments<'_>) -> ApiError {
    ApiError::new(ErrorCode::MalformedRequest, format!("{param}: {what}")).with_param(param)
}

fn parse_shape<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ApiError> {
    serde_json::from_str(text)
        .map_err(|_| malformed("params", &format_args!("expected an object, or an array, of parameters")))
}

/// The members of an object, in order and with those that come twice.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Pairs(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// What makes schemas for a document.
pub(super) fn generator() -> SchemaGenerator {
    let place = |settings: &mut SchemaSettings| settings.definitions_path = SCHEMAS.into();
    SchemaSettings::draft2020_12().with(place).into_generator()
}

/// The document.
pub(super) fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let mut generator = generator();
        let methods: Vec<_> = METHODS.iter().map(|method| method.describe(&mut generator)).collect();
        // Every error's `data`.
        let data = typed::<CallErrorData>(&mut generator);
        json!({
            "openrpc": "1.3.2",
            "info": {
                "title": "ZORAI compute market",
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": "Apache-2.0" },
            },
            "servers": [{ "name": "relay", "url": super::jsonrpc::PATH }],
            "methods": methods,
            "components": { "schemas": generator.take_definitions(true) },
            "x-error-data": data,
        })
    });
    &DOCUMENT
}

/// `GET /openrpc.json`
pub(super) async fn serve() -> Response {
    axum::Json(document()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str) -> &'static Method {
        METHODS.iter().find(|method| method.name == name).unwrap()
    }

    fn refused(name: &str, params: &str) -> rpc::error::ErrorDetail {
        let raw: &RawValue = serde_json::from_str(params).unwrap();
        let error = method(name).check(Some(raw)).expect_err(params);
        rpc::error::ErrorBody::from(error).error
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (name, params, param) in [
            ("zor_getTaskStatus", "{}", "task_id"),
            ("zor_getTaskStatus", "[]", "task_id"),
            ("zor_getTaskStatus", r#"{"taskId": "0x00"}"#, "taskId"),
            ("zor_getTaskStatus", r#"{"task_id": 5}"#, "task_id"),
            ("zor_getTaskStatus", r#"{"task_id": null}"#, "task_id"),
            ("zor_getTaskStatus", r#"["0x00", 1]"#, "params"),
            ("zor_getTaskStatus", "5", "params"),
            ("zor_getTaskStatus", r#""text""#, "params"),
            ("zor_getOpenTasks", r#"{"filter": {"limit": -1}}"#, "filter.limit"),
            ("zor_getOpenTasks", r#"{"filter": {"limit": 4294967296}}"#, "filter.limit"),
            ("zor_getOpenTasks", r#"{"filter": {"status": "open"}}"#, "filter.status"),
            ("zor_getOpenTasks", r#"{"cursor": "a", "cursor": "b"}"#, "cursor"),
            ("zor_getMarketStats", "[1]", "params"),
            ("zor_updateNodeStatus", r#"{"update": {"status": "asleep"}}"#, "update.status"),
        ] {
            let error = refused(name, params);
            assert_eq!(
                (error.code.as_str(), error.param.as_deref()),
                ("malformed_request", Some(param)),
                "{params}: {}",
                error.message
            );
        }
    }

    #[test]
    fn optional_parameters_may_be_left_out_or_null() {
        let method = method("zor_getOpenTasks");
        for params in
            ["[]", "{}", "[null]", "[null, null]", r#"{"filter": null}"#, r#"{"filter": {}, "cursor": "a"}"#]
        {
            let raw: &RawValue = serde_json::from_str(params).unwrap();
            assert_eq!(method.check(Some(raw)), Ok(()), "{params}");
        }
        assert_eq!(method.check(None), Ok(()));
    }
}
