//! The documents that describe the relay to machines.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::caller::{call, post};
use crate::rig::{Rig, answer};

#[tokio::test]
async fn openrpc_names_the_methods_that_are_served() {
    let rig = Rig::start().await;
    let (status, document) = answer(rig.bare(Method::GET, "/openrpc.json")).await;
    assert_eq!(status, StatusCode::OK);
    let (_, discovered) = post(&rig, call(1, "rpc.discover", json!([])).to_string()).await;
    assert_eq!(discovered["result"], document);
    let methods = document["methods"].as_array().unwrap();
    let named: BTreeSet<_> = methods.iter().map(|method| method["name"].as_str().unwrap()).collect();
    let expected = [
        "zor_publishTask",
        "zor_acceptTask",
        "zor_submitProof",
        "zor_getTaskStatus",
        "zor_registerNode",
        "zor_updateNodeStatus",
        "zor_getOpenTasks",
        "zor_getMarketStats",
        "rpc.discover",
    ];
    assert_eq!(named, expected.into_iter().collect());
    for method in methods {
        assert!(method["errors"].as_array().unwrap().iter().any(|error| error["code"] == -32602), "{method}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn openapi_says_which_methods_a_path_takes() {
    let rig = Rig::start().await;
    let (status, document) = answer(rig.bare(Method::GET, "/openapi.json")).await;
    assert_eq!((status, &document["openapi"]), (StatusCode::OK, &json!("3.1.0")));
    for (path, calls) in document["paths"].as_object().unwrap() {
        let filled = path.replace("{address}", &format!("0x{}", "0".repeat(40))).replace(['{', '}'], "");
        let response = rig.request(Method::TRACE, &filled).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allowed: BTreeSet<_> = response.headers()["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .map(|one| one.trim().to_lowercase())
            .collect();
        let mut described: BTreeSet<_> = calls.as_object().unwrap().keys().cloned().collect();
        if described.contains("get") {
            // HTTP's own: whatever can be got can be asked for without its body.
            described.insert("head".to_owned());
        }
        assert_eq!(described, allowed, "{path}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn schemas_take_what_the_relay_takes() {
    let rig = Rig::start().await;
    let (_, document) = answer(rig.bare(Method::GET, "/openapi.json")).await;
    let schemas = &document["components"]["schemas"];
    let wallet = wallet::Wallet::random();
    let body = serde_json::to_value(crate::rig::signed(&wallet, &crate::rig::task(&wallet))).unwrap();
    let described = |name: &str| -> BTreeSet<String> {
        schemas[name]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let written =
        |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(described("Task"), written(&body["task"]));
    assert_eq!(described("TaskConfig"), written(&body["task"]["config"]));
    assert_eq!(schemas["Task"]["additionalProperties"], false);
    assert_eq!(schemas["TaskId"]["pattern"], "^0x[0-9a-fA-F]{64}$");
    assert_eq!(schemas["Runtime"]["enum"], json!(["embed", "wasm", "container", "openai"]));
    rig.stop().await;
}
