//! What is refused, and how: every status in the table of the interface.

use reqwest::{Method, StatusCode};
use rpc::tasks::PublishTask;
use serde_json::{Value, json};
use taskmarket::{AcceptTask, Address, CancelTask, ComputeProof, ContentHash, Domain, FailTask, TaskId};
use wallet::Wallet;

use crate::rig::{PATIENCE, Rig, answer, assert_error, now, signed, task};

#[tokio::test]
async fn a_key_is_asked_for_before_anything_is_read() {
    let rig = Rig::start().await;
    // The body is neither JSON nor declared as such: only the missing key may matter.
    let bare = rig.bare(Method::POST, "/v1/tasks").body("{{{");
    assert_error(&answer(bare).await, 401, "invalid_api_key");
    let wrong = rig.bare(Method::POST, "/v1/tasks").bearer_auth("not-a-key").body("{{{");
    assert_error(&answer(wrong).await, 401, "invalid_api_key");
    let id = "0x".to_owned() + &"0".repeat(64);
    let digest = "0".repeat(64);
    for path in [
        "/v1/tasks".to_owned(),
        format!("/v1/tasks/{id}"),
        format!("/v1/tasks/{id}/events"),
        format!("/v1/tasks/{id}/result"),
        format!("/v1/tasks/{id}/explain"),
        format!("/v1/artifacts/{digest}"),
    ] {
        let refused = answer(rig.bare(Method::GET, &path)).await;
        assert_error(&refused, 401, "invalid_api_key");
    }
    for path in ["/v1/info", "/v1/providers", "/v1/stats"] {
        assert_eq!(answer(rig.bare(Method::GET, path)).await.0, StatusCode::OK, "{path}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_no_gpu_is_called_is_not_looked_for() {
    let rig = Rig::start().await;
    for name in ["%00".to_owned(), "a%0Ab".to_owned(), "a".repeat(129)] {
        let refused = rig.get(&format!("/v1/tasks?gpu_type={name}")).await;
        assert_error(&refused, 400, "invalid_field");
        assert_eq!(refused.1["error"]["param"], "gpu_type");
    }
    assert_eq!(rig.get(&format!("/v1/tasks?gpu_type={}", "a".repeat(128))).await.0, StatusCode::OK);
    rig.stop().await;
}

#[tokio::test]
async fn hostile_json_is_refused_and_named() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let good = serde_json::to_value(signed(&wallet, &task(&wallet))).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body.to_string().into_bytes()
    };
    let text = good.to_string();
    let cases: Vec<(Vec<u8>, Option<&str>)> = vec![
        (b"".to_vec(), None),
        (b"null".to_vec(), None),
        (b"[]".to_vec(), None),
        (b"{".to_vec(), None),
        (b"\xff\xfe{}".to_vec(), None),
        (b"{}".to_vec(), None),
        (vec![b'['; 100_000], None),
        (format!("{text} {text}").into_bytes(), None),
        (text.replacen("\"task\":", "\"task\":null,\"task\":", 1).into_bytes(), Some("task")),
        (text.replacen('{', "{\"extra\":1,", 1).into_bytes(), Some("extra")),
        (with("/task/config/gpu_count", json!("1")), Some("task.config.gpu_count")),
        (with("/task/config/gpu_count", json!(-1)), Some("task.config.gpu_count")),
        (with("/task/config/gpu_count", json!(1.5)), Some("task.config.gpu_count")),
        (with("/task/config/max_duration", json!(1e300)), Some("task.config.max_duration")),
        (with("/task/config/runtime", json!("shell")), Some("task.config.runtime")),
        (with("/task/budget", json!(5)), Some("task.budget")),
        (with("/task/budget", json!("-5")), Some("task.budget")),
        (with("/task/budget", json!("9".repeat(80))), Some("task.budget")),
        (with("/task/requester", json!("0x12")), Some("task.requester")),
        (with("/task/deadline", json!("tomorrow")), Some("task.deadline")),
        (with("/task/model_cid", json!("javascript:alert(1)")), Some("task.model_cid")),
        (
            with("/task/model_cid", json!("https://a.example/".to_owned() + &"a".repeat(4096))),
            Some("task.model_cid"),
        ),
        (with("/task/salt", json!(null)), Some("task.salt")),
        (with("/signature", json!("0x00")), Some("signature")),
        (with("/signature", json!("0x".to_owned() + &"f".repeat(130))), Some("signature")),
        (with("/verifying_contract", json!("zero")), Some("verifying_contract")),
    ];
    for (body, param) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        let request = rig.request(Method::POST, "/v1/tasks").header("content-type", "application/json");
        let refused = answer(request.body(body)).await;
        assert_eq!(refused.0, StatusCode::BAD_REQUEST, "{shown}: {}", refused.1);
        assert_error(&refused, 400, "malformed_request");
        if let Some(param) = param {
            let error = &refused.1["error"];
            assert_eq!(error["param"].as_str(), Some(param), "{shown}: {error}");
            assert!(error["message"].as_str().unwrap().contains(param), "{error}");
        }
    }
    assert_eq!(rig.get("/v1/tasks").await.1["tasks"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn hostile_mutations_are_named_and_change_nothing() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let id = rig.publish_new(&wallet).await;
    let (path, address) = (format!("/v1/tasks/{id}/events"), wallet.address());
    let before = rig.get(&path).await;
    assert_eq!(before.0, StatusCode::OK);
    let hash = "0".repeat(64);
    let attempt = |more: Value| {
        let mut mutation = json!({ "task_id": id, "provider": address, "attempt": 1 });
        mutation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        mutation
    };
    let mutations = [
        ("cancel", json!({ "task_id": id, "issued_at": now() })),
        ("accept", attempt(json!({ "lease_until": now() }))),
        ("fail", attempt(json!({ "code": "io", "message": "", "issued_at": now() }))),
        ("approve", attempt(json!({ "result_hash": hash, "issued_at": now() }))),
        ("resolve", json!({ "task_id": id, "attempt": 1, "provider_bps": 1, "issued_at": now() })),
    ];
    let signature = wallet.sign(&task(&wallet), &Domain::UNSETTLED).unwrap().signature;
    for (verb, mutation) in &mutations {
        let good = json!({ "mutation": mutation, "signature": signature });
        let mut cases = vec![
            (json!({ "signature": signature }), None),
            (json!({ "mutation": mutation }), None),
            (json!({ "mutation": mutation, "signature": 7 }), Some("signature".to_owned())),
            (json!({ "mutation": mutation, "signature": signature, "extra": 1 }), Some("extra".to_owned())),
        ];
        for field in mutation.as_object().unwrap().keys() {
            for wrong in [json!(null), json!(-1), json!(1e300), json!([[]]), json!({ "a": 1 })] {
                let mut body = good.clone();
                body["mutation"][field] = wrong;
                cases.push((body, Some(format!("mutation.{field}"))));
            }
        }
        for (body, param) in cases {
            let request = rig.bare(Method::POST, &format!("/v1/tasks/{id}/{verb}")).json(&body);
            let refused = answer(request).await;
            assert_error(&refused, 400, "malformed_request");
            let named = refused.1["error"]["param"].as_str();
            assert_eq!(named, param.as_deref(), "{verb} {body}: {}", refused.1);
        }
    }
    assert_eq!(rig.get(&path).await, before, "nothing was changed by any of them");
    rig.stop().await;
}

#[tokio::test]
async fn signatures_and_fields_are_checked() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let good = signed(&wallet, &task(&wallet));
    // Another field, another signer: the signature is no longer the requester's.
    let mut tampered = good.clone();
    tampered.task.budget = "1".parse().unwrap();
    let stolen = PublishTask { signature: signed(&wallet, &task(&wallet)).signature, ..good.clone() };
    for wrong in [tampered, stolen] {
        let refused = rig.publish(&wrong).await;
        assert_error(&refused, 400, "invalid_signature");
        assert_eq!(refused.1["error"]["param"], "signature");
    }
    let settled = PublishTask { verifying_contract: Address::repeat_byte(0x11), ..good.clone() };
    let refused = rig.publish(&settled).await;
    assert_error(&refused, 400, "unknown_domain");
    assert!(
        refused.1["error"]["message"].as_str().unwrap().contains(&Address::ZERO.to_string()),
        "{}",
        refused.1
    );

    let mut late = task(&wallet);
    late.deadline = "2020-01-01T00:00:00Z".parse().unwrap();
    let refused = rig.publish(&signed(&wallet, &late)).await;
    assert_error(&refused, 400, "invalid_field");
    assert_eq!(refused.1["error"]["param"], "deadline");
    rig.stop().await;
}

#[tokio::test]
async fn a_mutation_needs_the_right_party_state_and_task() {
    let (rig, wallet, stranger) = (Rig::start().await, Wallet::random(), Wallet::random());
    let (id, other) = (rig.publish_new(&wallet).await, rig.publish_new(&wallet).await);
    let task_id: TaskId = id.parse().unwrap();
    let cancel = CancelTask { task_id, issued_at: now() };
    assert_error(&rig.mutate(&stranger, &id, "cancel", &cancel).await, 403, "wrong_party");
    let misplaced = rig.mutate(&wallet, &other, "cancel", &cancel).await;
    assert_error(&misplaced, 400, "invalid_field");
    assert_eq!(misplaced.1["error"]["param"], "mutation.task_id");
    let stale = CancelTask { task_id, issued_at: "2020-01-01T00:00:00Z".parse().unwrap() };
    assert_error(&rig.mutate(&wallet, &id, "cancel", &stale).await, 400, "invalid_field");

    let lease_until = now().plus(60);
    let accept = AcceptTask { task_id, provider: stranger.address(), attempt: 1, lease_until };
    let absent = rig.mutate(&stranger, &id, "accept", &accept).await;
    assert_error(&absent, 409, "no_session");
    assert_eq!(absent.1["error"]["status"], "open");
    let fail = FailTask {
        task_id,
        provider: stranger.address(),
        attempt: 1,
        code: "oom".to_owned(),
        message: String::new(),
        issued_at: now(),
    };
    assert_error(&rig.mutate(&stranger, &id, "fail", &fail).await, 409, "stale_attempt");
    let proof = ComputeProof {
        task_id,
        provider: stranger.address(),
        attempt: 0,
        model_hash: ContentHash::UNPINNED,
        input_hash: ContentHash::UNPINNED,
        result_hash: ContentHash::UNPINNED,
        result_cid: "https://r.example/r".parse().unwrap(),
        started_at: now(),
        finished_at: now(),
        gpu_name: "CPU".to_owned(),
    };
    assert_error(&rig.mutate(&stranger, &id, "proof", &proof).await, 409, "conflict");
    // Signed for another domain than the task's.
    let elsewhere = Domain { chain_id: 5, ..Domain::UNSETTLED };
    let body = rpc::tasks::SignedMutation::from(wallet.sign(&cancel, &elsewhere).unwrap());
    let foreign = answer(rig.bare(Method::POST, &format!("/v1/tasks/{id}/cancel")).json(&body)).await;
    assert_error(&foreign, 403, "wrong_party");
    assert_eq!(rig.get(&format!("/v1/tasks/{id}")).await.1["status"], "open");
    rig.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_is_said_in_the_same_shape() {
    let rig = Rig::start().await;
    let nowhere = format!("/v1/tasks/0x{}", "ab".repeat(32));
    for path in [
        &*nowhere,
        &format!("{nowhere}/events"),
        &format!("/v1/artifacts/{}", "0".repeat(64)),
        "/nowhere",
        "/v1/tasks/",
    ] {
        assert_error(&rig.get(path).await, 404, "not_found");
    }
    let cancel = CancelTask { task_id: TaskId(Default::default()), issued_at: now() };
    let missing = rig.mutate(&Wallet::random(), &format!("0x{}", "0".repeat(64)), "cancel", &cancel).await;
    assert_error(&missing, 404, "not_found");
    for path in ["/v1/tasks/1", "/v1/tasks/0x12", "/v1/tasks/%FF", "/v1/artifacts/abc", "/v1/providers/0x1"] {
        assert_error(&rig.get(path).await, 400, "malformed_request");
    }
    for query in ["status=done", "limit=x", "foo=1", "requester=0x1", "cursor=zz", "limit=-1"] {
        assert_error(&rig.get(&format!("/v1/tasks?{query}")).await, 400, "malformed_request");
    }
    for query in ["limit=0", "limit=1001"] {
        assert_error(&rig.get(&format!("/v1/tasks?{query}")).await, 400, "invalid_field");
    }
    rig.stop().await;
}

#[tokio::test]
async fn methods_types_and_sizes_are_checked() {
    let rig = Rig::start().await;
    let response = rig.request(Method::DELETE, "/v1/tasks").send().await.unwrap();
    let allowed = response.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allowed.contains("POST") && allowed.contains("GET"), "{allowed}");
    assert_error(&answer(rig.request(Method::DELETE, "/v1/tasks")).await, 405, "method_not_allowed");
    let typed = rig.request(Method::POST, "/v1/tasks").header("content-type", "text/plain").body("{}");
    assert_error(&answer(typed).await, 415, "unsupported_media_type");
    let untyped = rig.request(Method::POST, "/v1/tasks").body("{}");
    assert_error(&answer(untyped).await, 415, "unsupported_media_type");
    let json = |body: reqwest::Body| {
        rig.request(Method::POST, "/v1/tasks")
            .header("content-type", "application/json; charset=utf-8")
            .body(body)
    };
    let large = vec![b' '; 300 * 1024];
    assert_error(&answer(json(large.clone().into())).await, 413, "payload_too_large");
    let pieces = futures_util::stream::iter(
        large.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>(),
    );
    assert_error(&answer(json(reqwest::Body::wrap_stream(pieces))).await, 413, "payload_too_large");
    let plain = async {
        loop {
            let plain = answer(rig.bare(Method::GET, "/v1/provider/connect")).await;
            // The relay takes sessions a moment after it takes requests.
            if plain.0 != StatusCode::SERVICE_UNAVAILABLE {
                return plain;
            }
        }
    };
    let plain = tokio::time::timeout(PATIENCE, plain).await.unwrap();
    assert_error(&plain, 426, "upgrade_required");
    rig.stop().await;
}

#[tokio::test]
async fn a_clients_request_id_comes_back() {
    let rig = Rig::start().await;
    let id = async |asked: &str| {
        let request = rig.bare(Method::GET, "/nowhere").header("x-request-id", asked);
        request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id("trace-7.a").await, "trace-7.a");
    assert_ne!(id("bad id").await, "bad id");
    rig.stop().await;
}

#[tokio::test]
async fn references_that_no_node_could_follow_are_refused() {
    let (rig, wallet) = (Rig::start().await, Wallet::random());
    let named = "ab".repeat(32);
    let (other, own) = ("cd".repeat(32).parse().unwrap(), named.parse().unwrap());
    let unpinned = ContentHash::UNPINNED;
    let wrong = [
        ("ipfs://notacid".to_owned(), unpinned),
        ("ipfs://QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG/../x".to_owned(), unpinned),
        ("https://?query".to_owned(), unpinned),
        ("http://:80/".to_owned(), unpinned),
        ("file://host/share".to_owned(), unpinned),
        ("oci://image:latest".to_owned(), unpinned),
        (format!("artifact://{named}"), other),
        (format!("artifact://{named}/"), other),
    ];
    for (text, hash) in wrong {
        let reference = text.parse().unwrap();
        let (mut model, mut input) = (task(&wallet), task(&wallet));
        (model.model_cid, model.model_hash) = (reference, hash);
        (input.input_cid, input.input_hash) = (model.model_cid.clone(), hash);
        for (param, task) in [("model_cid", model), ("input_cid", input)] {
            let refused = rig.publish(&signed(&wallet, &task)).await;
            assert_error(&refused, 400, "invalid_field");
            assert_eq!(refused.1["error"]["param"], param, "{text}: {}", refused.1);
        }
    }
    assert_eq!(rig.get("/v1/tasks").await.1["tasks"], json!([]));
    let mut right = task(&wallet);
    (right.model_cid, right.model_hash) = (format!("artifact://0x{named}").parse().unwrap(), own);
    right.input_cid = "ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi/a".parse().unwrap();
    assert_eq!(rig.publish(&signed(&wallet, &right)).await.0, StatusCode::CREATED);
    rig.stop().await;
}
