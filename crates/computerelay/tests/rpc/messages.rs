//! What is no call, or not one of ours: batches, notifications, odd ids, garbage.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::caller::{call, post};
use crate::rig::{Rig, answer};

const STATS: &str = "zor_getMarketStats";

/// The answer to a message that is no call: its id, code and word.
async fn wrong(rig: &Rig, body: impl Into<Vec<u8>>) -> (Value, i64, String) {
    let (status, body) = post(rig, body).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["jsonrpc"], "2.0");
    let error = &body["error"];
    assert!(error["message"].is_string(), "{body}");
    (body["id"].clone(), error["code"].as_i64().unwrap(), error["data"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn garbage_is_answered_as_json_rpc_says() {
    let rig = Rig::start().await;
    for garbage in [
        &b""[..],
        b" ",
        b"garbage",
        b"{",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"zor_getMarketStats\"",
        b"[1,",
        b"\xff\xfe",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}",
        b"{} {}",
    ] {
        let expected = (Value::Null, -32700, "malformed_request".to_owned());
        assert_eq!(wrong(&rig, garbage).await, expected, "{garbage:?}");
    }
    for (message, id) in [
        ("{}", Value::Null),
        ("1", Value::Null),
        ("\"text\"", Value::Null),
        ("null", Value::Null),
        ("[]", Value::Null),
        (r#"{"jsonrpc":"2.0"}"#, Value::Null),
        (r#"{"jsonrpc":"1.0","id":7,"method":"zor_getMarketStats"}"#, json!(7)),
        (r#"{"id":7,"method":"zor_getMarketStats"}"#, json!(7)),
        (r#"{"jsonrpc":"2.0","id":"a","method":5}"#, json!("a")),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"zor_getMarketStats"}"#, Value::Null),
        (r#"{"jsonrpc":"2.0","id":-1,"method":"zor_getMarketStats"}"#, Value::Null),
        (r#"{"jsonrpc":"2.0","id":18446744073709551616,"method":"zor_getMarketStats"}"#, Value::Null),
        (r#"{"jsonrpc":"2.0","id":{},"method":"zor_getMarketStats"}"#, Value::Null),
    ] {
        assert_eq!(wrong(&rig, message).await, (id, -32600, "malformed_request".to_owned()), "{message}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn ids_come_back_as_they_were() {
    let rig = Rig::start().await;
    for id in [json!(0), json!(u64::MAX), json!("x".repeat(10_000)), json!("\u{0}é\"\\"), Value::Null] {
        let (status, body) = post(&rig, call(id.clone(), STATS, json!([])).to_string()).await;
        assert_eq!((status, &body["id"]), (StatusCode::OK, &id));
        assert!(body["result"].is_object(), "{body}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let rig = Rig::start().await;
    let deep = |text: &str, times: usize| text.repeat(times);
    let (_, code, _) = wrong(&rig, deep("[", 100_000)).await;
    assert_eq!(code, -32700);
    let (_, code, _) = wrong(&rig, deep("{\"a\":", 50_000)).await;
    assert_eq!(code, -32700);
    let nested = format!("{}{}", deep("[", 100_000), deep("]", 100_000));
    let whole =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"zor_getTaskStatus","params":{{"task_id":{nested}}}}}"#);
    let (id, code, word) = wrong(&rig, whole).await;
    assert_eq!((id, code, word.as_str()), (json!(1), -32602, "malformed_request"));
    let listed = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"zor_getOpenTasks","params":{nested}}}"#);
    assert_eq!(wrong(&rig, listed).await.1, -32602);
    rig.stop().await;
}

#[tokio::test]
async fn notifications_are_not_answered_and_do_nothing() {
    let rig = Rig::start().await;
    let notification = json!({ "jsonrpc": "2.0", "method": STATS });
    assert_eq!(post(&rig, notification.to_string()).await, (StatusCode::NO_CONTENT, Value::Null));
    let both = json!([notification, notification]);
    assert_eq!(post(&rig, both.to_string()).await, (StatusCode::NO_CONTENT, Value::Null));

    let wallet = wallet::Wallet::random();
    let body = crate::rig::signed(&wallet, &crate::rig::task(&wallet));
    let publish = json!({
        "jsonrpc": "2.0",
        "method": "zor_publishTask",
        "params": { "task": body.task, "signature": body.signature },
    });
    assert_eq!(post(&rig, publish.to_string()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(rig.get("/v1/stats").await.1["tasks"]["open"], 0);
    rig.stop().await;
}

#[tokio::test]
async fn batches_are_answered_in_order_and_bounded() {
    let rig = Rig::start().await;
    let batch = json!([
        call("a", STATS, json!({})),
        { "jsonrpc": "2.0", "method": STATS },
        call(2, "zor_nothing", json!([])),
        5,
        call(3, "zor_getTaskStatus", json!(["0x"])),
        call(3, STATS, json!([])),
    ]);
    let (status, body) = post(&rig, batch.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let codes: Vec<_> = body
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].clone(), one["error"]["code"].as_i64()))
        .collect();
    let expected = [
        (json!("a"), None),
        (json!(2), Some(-32601)),
        (Value::Null, Some(-32600)),
        (json!(3), Some(-32602)),
        (json!(3), None),
    ];
    assert_eq!(codes, expected, "{body}");

    let of = |count: usize| Value::from(vec![call(1, STATS, json!([])); count]).to_string();
    assert_eq!(post(&rig, of(50)).await.1.as_array().unwrap().len(), 50);
    let (id, code, _) = wrong(&rig, of(51)).await;
    assert_eq!((id, code), (Value::Null, -32600));
    rig.stop().await;
}

#[tokio::test]
async fn unknown_methods_are_refused() {
    let rig = Rig::start().await;
    for method in ["zor_nothing", "", "getMarketStats", "zor_getmarketstats", "rpc.", "zor_publish_task"] {
        let expected = (json!(1), -32601, "method_not_allowed".to_owned());
        assert_eq!(wrong(&rig, call(1, method, json!([])).to_string()).await, expected, "{method}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn hostile_parameters_are_named_and_change_nothing() {
    let (rig, wallet) = (Rig::start().await, wallet::Wallet::random());
    let body = crate::rig::signed(&wallet, &crate::rig::task(&wallet));
    let right = json!({ "task": body.task, "signature": body.signature });
    let with = |pointer: &str, value: Value| {
        let mut params = right.clone();
        *params.pointer_mut(pointer).unwrap() = value;
        params
    };
    let mut extra = right.clone();
    extra["task"]["extra"] = json!(1);
    let mut missing = right.clone();
    missing["task"]["config"].as_object_mut().unwrap().remove("runtime");
    let mut unknown = right.clone();
    unknown["webhook"] = json!("https://a.example");
    for (params, param) in [
        (json!({}), "task"),
        (json!([]), "task"),
        (json!([body.task]), "signature"),
        (json!([body.task, body.signature, null, null]), "params"),
        (with("/task", Value::Null), "task"),
        (with("/task", json!([])), "task"),
        (with("/task/budget", json!(5)), "task.budget"),
        (with("/task/budget", json!("-5")), "task.budget"),
        (with("/task/budget", json!("9".repeat(100))), "task.budget"),
        (with("/task/requester", json!("0x12")), "task.requester"),
        (with("/task/deadline", json!(-1)), "task.deadline"),
        (with("/task/deadline", json!("9999-99-99T00:00:00Z")), "task.deadline"),
        (with("/task/dispute_window", json!(-1)), "task.dispute_window"),
        (with("/task/dispute_window", json!(1e30)), "task.dispute_window"),
        (with("/task/config/gpu_count", json!(4_294_967_296_u64)), "task.config.gpu_count"),
        (with("/task/config/runtime", json!("quantum")), "task.config.runtime"),
        (with("/task/config/runtime", json!({})), "task.config.runtime"),
        (with("/task/model_cid", json!("gopher://a")), "task.model_cid"),
        (with("/task/model_cid", json!(format!("https://{}", "a".repeat(3000)))), "task.model_cid"),
        (with("/signature", json!("0x00")), "signature"),
        (with("/signature", json!(true)), "signature"),
        (extra, "task.extra"),
        (missing, "task.config"),
        (unknown, "webhook"),
    ] {
        let (_, answer) = post(&rig, call(1, "zor_publishTask", params.clone()).to_string()).await;
        let error = &answer["error"];
        assert_eq!(
            (error["code"].as_i64(), error["data"]["param"].as_str()),
            (Some(-32602), Some(param)),
            "{answer}"
        );
        assert_eq!(error["data"]["code"], "malformed_request", "{params}");
    }
    assert_eq!(rig.get("/v1/stats").await.1["tasks"]["open"], 0);
    rig.stop().await;
}

#[tokio::test]
async fn http_around_it_is_strict() {
    let rig = Rig::start().await;
    let text = call(1, STATS, json!([])).to_string();
    let plain = rig.request(Method::POST, "/rpc").header("content-type", "text/plain").body(text.clone());
    let (status, body) = answer(plain).await;
    assert_eq!(
        (status.as_u16(), body["error"]["data"]["code"].as_str()),
        (415, Some("unsupported_media_type"))
    );
    let (status, body) = post(&rig, "x".repeat(300_000)).await;
    assert_eq!((status.as_u16(), body["error"]["code"].as_i64()), (413, Some(-32013)));
    assert_eq!(body["id"], Value::Null);
    let (status, body) = answer(rig.request(Method::GET, "/rpc")).await;
    assert_eq!((status.as_u16(), body["error"]["code"].as_str()), (426, Some("upgrade_required")));
    let (status, body) = answer(rig.request(Method::DELETE, "/rpc")).await;
    assert_eq!((status.as_u16(), body["error"]["code"].as_str()), (405, Some("method_not_allowed")));
    rig.stop().await;
}

#[tokio::test]
async fn references_are_checked_as_by_rest() {
    let (rig, wallet) = (Rig::start().await, wallet::Wallet::random());
    let mut task = crate::rig::task(&wallet);
    task.input_cid = "ipfs://notacid".parse().unwrap();
    let body = crate::rig::signed(&wallet, &task);
    let params = json!({ "task": body.task, "signature": body.signature });
    let (_, answer) = post(&rig, call(1, "zor_publishTask", params).to_string()).await;
    let data = &answer["error"]["data"];
    assert_eq!((data["code"].as_str(), data["param"].as_str()), (Some("invalid_field"), Some("input_cid")));
    rig.stop().await;
}
