//! Clients of the JSON-RPC endpoint: the generated ones, and one that sends any text.

use http::{HeaderMap, HeaderValue, header};
use jsonrpsee::core::ClientError;
use jsonrpsee::http_client::{HttpClient, HttpClientBuilder};
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::ws_client::{WsClient, WsClientBuilder};
use reqwest::{Method, StatusCode};
use rpc::error::CallErrorData;
use serde_json::{Value, json};

use crate::rig::{PATIENCE, Rig};

fn headers(key: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let value = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
        headers.insert(header::AUTHORIZATION, value);
    }
    headers
}

/// A generated client over HTTP.
pub(crate) fn http(rig: &Rig, key: Option<&str>) -> HttpClient {
    HttpClientBuilder::default()
        .request_timeout(PATIENCE)
        .set_headers(headers(key))
        .build(format!("{}/rpc", rig.base))
        .unwrap()
}

/// A generated client over WebSocket.
pub(crate) async fn socket(rig: &Rig, key: Option<&str>) -> WsClient {
    WsClientBuilder::default()
        .request_timeout(PATIENCE)
        .set_headers(headers(key))
        .build(format!("ws://{}/rpc", rig.addr))
        .await
        .unwrap()
}

/// Posts any text, with the first key; answers the JSON, or `null` for none.
pub(crate) async fn post(rig: &Rig, body: impl Into<Vec<u8>>) -> (StatusCode, Value) {
    let request = rig.request(Method::POST, "/rpc").header("content-type", "application/json");
    crate::rig::answer(request.body(body.into())).await
}

/// The text of a call.
pub(crate) fn call(id: impl Into<Value>, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params })
}

/// The error that a call was answered with.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> ErrorObjectOwned {
    match answer {
        Err(ClientError::Call(error)) => error,
        other => panic!("expected an error of the call, got {other:?}"),
    }
}

/// Checks that a call was refused with this code, and that its data have this word and parameter.
#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    answer: Result<T, ClientError>,
    code: i32,
    word: &str,
    param: Option<&str>,
) -> CallErrorData {
    let error = refused(answer);
    let data: CallErrorData = serde_json::from_str(error.data().unwrap().get()).unwrap();
    assert_eq!((error.code(), data.code.as_str(), data.param.as_deref()), (code, word, param), "{error:?}");
    data
}
