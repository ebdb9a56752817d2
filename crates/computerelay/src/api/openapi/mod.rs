//! The REST calls as a machine reads of them: an OpenAPI document, made from the types that the calls read and write.

mod calls;
mod inference;
mod operation;

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use serde_json::Value;

use operation::Document;

/// The document.
fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let mut document = Document::new();
        calls::describe(&mut document);
        document.finish()
    });
    &DOCUMENT
}

/// `GET /openapi.json`
pub(super) async fn serve() -> Response {
    axum::Json(document()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paths of a router's source.
    fn routes(source: &str) -> Vec<&str> {
        let begun = source.split(".route(").skip(1);
        begun.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
    }

    /// A route as it is described: parameters that may hold slashes look like others.
    fn described(route: &str) -> String {
        route.replace("{*", "{")
    }

    #[test]
    fn every_route_is_described() {
        let paths = document()["paths"].as_object().unwrap();
        let mut routes = routes(include_str!("../mod.rs"));
        assert!(routes.len() > 20, "{routes:?}");
        routes.extend([rpc::PROVIDER_CONNECT_PATH, super::super::jsonrpc::PATH]);
        let routes: Vec<_> = routes.into_iter().map(described).collect();
        for route in &routes {
            assert!(paths.contains_key(route), "{route} is missing in openapi/calls.rs");
        }
        for path in paths.keys() {
            assert!(routes.contains(path), "{path} is described and not served");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for document in [document(), super::super::openrpc::document()] {
            let mut references = Vec::new();
            collect(document, &mut references);
            assert!(!references.is_empty());
            for reference in references {
                let place = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(place).is_some(), "{reference}");
            }
        }
    }

    fn collect<'a>(value: &'a Value, references: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                references.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| collect(value, references));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
