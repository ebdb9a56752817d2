//! The node over real HTTP: who may call it, what becomes of tasks, and that a bad one harms nobody else.

mod support;

use std::time::Duration;

use computenode::{Args, BuildError, Node};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use support::http::{compute_request, ended, task_id};
use support::node::{TestNode, args};

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_there_is_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    for token in [None, Some(""), Some("wrong")] {
        for (method, path) in [
            (Method::GET, "/status"),
            (Method::GET, "/metrics"),
            (Method::POST, "/compute"),
            (Method::GET, "/nowhere"),
        ] {
            let mut api = node.api.clone();
            api.token = token.map(str::to_owned);
            let (status, body) = api.json(method, path, None).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {token:?}");
            assert_eq!(body["error"]["code"], "invalid_api_key");
        }
    }
    assert!(node.api.text("/metrics").await.contains("zorai_node_unauthorized_total 12\n"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = std::fs::metadata(folder.path().join("data/compute-token")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
    node.stop().await;
}

#[tokio::test]
async fn what_others_can_reach_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let everywhere = |flags: &[&str]| Args { listen: ([0, 0, 0, 0], 0).into(), ..args(folder.path(), flags) };
    let refused = Node::build(everywhere(&[]).into()).await;
    assert!(matches!(refused, Err(BuildError::Remote { .. })));
    let allowed = Node::build(everywhere(&["--allow-remote"]).into()).await;
    assert!(allowed.is_ok());
}

#[tokio::test]
async fn a_data_folder_has_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let first = Node::build(args(folder.path(), &[]).into()).await.unwrap();
    let second = Node::build(args(folder.path(), &[]).into()).await;
    assert!(matches!(second, Err(BuildError::InUse(_))));
    drop(first);
    assert!(Node::build(args(folder.path(), &[]).into()).await.is_ok());
}

#[cfg(unix)]
#[tokio::test]
async fn an_exposed_token_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    drop(Node::build(args(folder.path(), &[]).into()).await.unwrap());
    let token = folder.path().join("data/compute-token");
    std::fs::set_permissions(token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = Node::build(args(folder.path(), &[]).into()).await;
    assert!(matches!(refused, Err(BuildError::Token(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_to_its_result() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &["--gpu-name", "Test GPU", "--gpu-vram-mb", "1024"]).await;
    let request = compute_request(folder.path(), 1, "upper", "hello");
    let (status, first) = node.api.json(Method::POST, "/compute", Some(&request)).await;
    assert_eq!(
        (status, &first["phase"], &first["revision"]),
        (StatusCode::ACCEPTED, &json!("fetching"), &json!(1))
    );

    let done = ended(&node.api, 1).await;
    assert_eq!(done["phase"], "done", "{done}");
    let outcome = &done["outcome"];
    assert_eq!(outcome["result_bytes"], 5);
    // SHA-256 of "HELLO" and of "hello".
    let result_hash = "3733cd977ff8eb18b987357e22ced99f46097f31ecb239e878ae63760e83e4d5";
    assert_eq!(outcome["result_hash"], result_hash);
    assert_eq!(outcome["input_hash"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_eq!(outcome["device"], "CPU", "no GPU did this");
    let response = node.api.send(Method::GET, &format!("/result/{}", task_id(1)), None).await;
    assert_eq!(response.headers()["x-result-hash"], result_hash);
    assert_eq!(response.headers()["content-length"], "5");
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.bytes().await.unwrap(), "HELLO");

    // The same attempt again changes nothing, an older one is refused, a newer one runs anew.
    let (status, again) = node.api.json(Method::POST, "/compute", Some(&request)).await;
    assert_eq!((status, again), (StatusCode::ACCEPTED, done.clone()));
    let mut newer = request.clone();
    newer["attempt"] = json!(2);
    let (status, _) = node.api.json(Method::POST, "/compute", Some(&newer)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let done_again = ended(&node.api, 1).await;
    assert_eq!((&done_again["attempt"], &done_again["phase"]), (&json!(2), &json!("done")));
    assert!(done_again["revision"].as_u64() > done["revision"].as_u64());
    let (status, body) = node.api.json(Method::POST, "/compute", Some(&request)).await;
    assert_eq!((status, &body["error"]["code"]), (StatusCode::CONFLICT, &json!("stale_attempt")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_come_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    support::write_tiny_model(&model);
    let node = TestNode::start(folder.path(), &[]).await;
    let mut request = compute_request(folder.path(), 1, "upper", "w1 w2\n\nw3");
    request["task"]["config"]["runtime"] = json!("embed");
    request["task"]["model_cid"] = json!(format!("file://{}/", model.display()));
    node.api.json(Method::POST, "/compute", Some(&request)).await;
    let done = ended(&node.api, 1).await;
    assert_eq!(done["phase"], "done", "{done}");
    let result: Value =
        serde_json::from_str(&node.api.text(&format!("/result/{}", task_id(1))).await).unwrap();
    assert_eq!(result["model"], done["outcome"]["model_hash"]);
    assert_eq!(result["data"].as_array().unwrap().len(), 2);
    let (_, report) = node.api.json(Method::GET, "/status", None).await;
    assert_eq!(report["warm_models"], json!([done["outcome"]["model_hash"]]));
    assert_eq!(report["runtimes"], json!(["embed", "wasm"]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_task_says_why_and_the_node_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let node =
        TestNode::start(folder.path(), &["--max-result-bytes", "1000", "--task-memory-mb", "64"]).await;
    let wrong = "11".repeat(32);
    for (number, program, change, code) in [
        (1, "spin", json!({"config": {"max_duration": 1}}), "timed_out"),
        (2, "spin", json!({"config": {"params": r#"{"fuel":1000}"#}}), "out_of_fuel"),
        (3, "grow", json!({}), "out_of_memory"),
        (4, "trap", json!({}), "trapped"),
        (5, "exit", json!({}), "exit_nonzero"),
        (6, "flood", json!({}), "output_too_large"),
        (7, "upper", json!({"config": {"params": "{}x"}}), "bad_params"),
        (8, "upper", json!({"input_hash": wrong}), "hash_mismatch"),
        (9, "upper", json!({"model_hash": wrong}), "hash_mismatch"),
        (10, "upper", json!({"model_cid": "file:///etc/passwd"}), "not_allowed"),
        (11, "upper", json!({"model_cid": "http://127.0.0.1:1/m"}), "forbidden_address"),
        (
            12,
            "upper",
            json!({"model_cid": "ipfs://bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"}),
            "unsupported_codec",
        ),
    ] {
        let mut request = compute_request(folder.path(), number, program, "hello");
        for (key, value) in change.as_object().unwrap() {
            if key == "config" {
                request["task"]["config"].as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            } else {
                request["task"][key] = value.clone();
            }
        }
        let (status, body) = node.api.json(Method::POST, "/compute", Some(&request)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        let failed = ended(&node.api, number).await;
        assert_eq!(
            (&failed["phase"], &failed["failure"]["code"]),
            (&json!("failed"), &json!(code)),
            "{failed}"
        );
        let (status, body) = node.api.json(Method::GET, &format!("/result/{}", task_id(number)), None).await;
        assert_eq!((status, &body["error"]["code"]), (StatusCode::CONFLICT, &json!("conflict")));
    }
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 99, "upper", "x"))).await;
    assert_eq!(ended(&node.api, 99).await["phase"], "done");
    let metrics = node.api.text("/metrics").await;
    let failed = r#"zorai_node_tasks_total{runtime="wasm",outcome="failed",code="hash_mismatch"} 2"#;
    assert!(metrics.lines().any(|line| line == failed), "{metrics}");
    let done = r#"zorai_node_tasks_total{runtime="wasm",outcome="done",code=""} 1"#;
    assert!(metrics.lines().any(|line| line == done), "{metrics}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_bounded_and_cancelling_frees_them() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &["--slots", "1"]).await;
    let (spin, other) =
        (compute_request(folder.path(), 1, "spin", ""), compute_request(folder.path(), 2, "upper", "x"));
    node.api.json(Method::POST, "/compute", Some(&spin)).await;
    let (_, report) = node.api.json(Method::GET, "/status", None).await;
    assert_eq!((&report["slots"], &report["busy"]), (&json!(1), &json!(1)));

    let busy = node.api.send(Method::POST, "/compute", Some(&other)).await;
    assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(busy.headers().contains_key("retry-after"));
    // The refused task left nothing behind.
    let (status, _) = node.api.json(Method::GET, &format!("/status/{}", task_id(2)), None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let (status, _) = node.api.json(Method::DELETE, &format!("/compute/{}", task_id(1)), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(ended(&node.api, 1).await["phase"], "cancelled");
    let (status, _) = node.api.json(Method::POST, "/compute", Some(&other)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(ended(&node.api, 2).await["phase"], "done");
    let (status, _) = node.api.json(Method::DELETE, &format!("/compute/{}", task_id(3)), None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_called_off_attempt_can_be_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    let mut request = compute_request(folder.path(), 1, "spin", "");
    node.api.json(Method::POST, "/compute", Some(&request)).await;
    node.api.json(Method::DELETE, &format!("/compute/{}", task_id(1)), None).await;
    assert_eq!(ended(&node.api, 1).await["phase"], "cancelled");
    request["task"] = compute_request(folder.path(), 1, "upper", "x")["task"].take();
    let (status, _) = node.api.json(Method::POST, "/compute", Some(&request)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(ended(&node.api, 1).await["phase"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_attempt_ends_the_older() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "spin", ""))).await;
    let mut newer = compute_request(folder.path(), 1, "upper", "x");
    newer["attempt"] = json!(2);
    let (status, _) = node.api.json(Method::POST, "/compute", Some(&newer)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "the older one has to end first");
    assert_eq!(ended(&node.api, 1).await["phase"], "cancelled");
    node.api.json(Method::POST, "/compute", Some(&newer)).await;
    let done = ended(&node.api, 1).await;
    assert_eq!((&done["attempt"], &done["phase"]), (&json!(2), &json!("done")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_can_be_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 1, "spin", ""))).await;
    let path = format!("/status/{}", task_id(1));
    let (_, running) = node.api.json(Method::GET, &format!("{path}?wait_ms=20000&seen=1"), None).await;
    let seen = running["revision"].as_u64().unwrap();
    assert!(seen > 1);
    let api = node.api.clone();
    let waiting =
        tokio::spawn(
            async move { api.json(Method::GET, &format!("{path}?wait_ms=50000&seen=1000"), None).await },
        );
    // Nothing reaches revision 1000: a node that ends answers those who wait.
    node.stop().await;
    let (status, _) = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    let good = compute_request(folder.path(), 1, "upper", "x");
    let without = |key: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(key);
        body.to_string()
    };
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string()
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, expected, code) in [
        (String::new(), 400, "malformed_request"),
        ("{".to_owned(), 400, "malformed_request"),
        ("[]".to_owned(), 400, "malformed_request"),
        (deep, 400, "malformed_request"),
        (without("attempt"), 400, "malformed_request"),
        (with("attempt", json!(-1)), 400, "malformed_request"),
        (with("attempt", json!(1e30)), 400, "malformed_request"),
        (with("task_id", json!("../../etc/passwd")), 400, "malformed_request"),
        (with("surprise", json!(1)), 400, "malformed_request"),
        (with("relay_url", json!("gopher://x")), 400, "invalid_field"),
        (with("attempt_token", json!("a\nb")), 400, "invalid_field"),
        (with("attempt_token", json!("a".repeat(300_000))), 413, "payload_too_large"),
    ] {
        let (status, answer) = node.api.raw_json(Method::POST, "/compute", body.clone()).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!(
            (status.as_u16(), &answer["error"]["code"]),
            (expected, &json!(code)),
            "{shown}: {answer}"
        );
    }
    for (method, path, expected) in [
        (Method::GET, "/status/nonsense", 400),
        (Method::GET, "/status/%ff", 400),
        (Method::GET, &*format!("/status/{}?wait_ms=x", task_id(1)), 400),
        (Method::GET, &*format!("/result/{}", task_id(1)), 404),
        (Method::GET, "/result/..%2f..%2fcompute-token", 400),
        (Method::GET, "/nowhere", 404),
        (Method::PUT, "/compute", 405),
    ] {
        let (status, answer) = node.api.json(method, path, None).await;
        assert_eq!(status.as_u16(), expected, "{path}");
        assert!(answer["error"]["message"].is_string(), "{path}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_survive_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    for number in [1, 2] {
        node.api
            .json(Method::POST, "/compute", Some(&compute_request(folder.path(), number, "upper", "x")))
            .await;
        ended(&node.api, number).await;
    }
    node.api.json(Method::POST, "/compute", Some(&compute_request(folder.path(), 3, "spin", ""))).await;
    node.stop().await;

    let results = folder.path().join("data/results");
    std::fs::write(results.join("orphan"), "left by a crash").unwrap();
    std::fs::write(results.join(".half.1.2.tmp"), "left by a crash").unwrap();
    let node = TestNode::start(folder.path(), &[]).await;
    assert_eq!(node.api.text(&format!("/result/{}", task_id(1))).await, "X");
    let restarted = ended(&node.api, 3).await;
    assert_eq!(
        (&restarted["phase"], &restarted["failure"]["code"]),
        (&json!("failed"), &json!("node_restarted"))
    );
    assert_eq!(std::fs::read_dir(&results).unwrap().count(), 5, "three records, two results");
    node.stop().await;

    // There is room for one task, and then for none.
    let node = TestNode::start(folder.path(), &["--keep-results-bytes", "4096"]).await;
    let known = std::fs::read_dir(&results).unwrap().filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "json")
    });
    assert_eq!(known.count(), 1);
    node.stop().await;
    TestNode::start(folder.path(), &["--keep-results-bytes", "0"]).await.stop().await;
    assert_eq!(std::fs::read_dir(&results).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fetched_files_go_when_they_are_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let store = artifact::BlobStore::open(folder.path().join("data/artifacts")).unwrap();
    let mut digests = Vec::new();
    for content in [b"first-------", b"second------", b"third-------"] {
        digests.push(store.put_bytes(content, None).await.unwrap().0);
    }
    let fetched_at = |age: u64| std::time::SystemTime::now() - Duration::from_secs(age);
    for (digest, age) in digests.iter().zip([20, 30, 10]) {
        let file = std::fs::File::options().write(true).open(store.path(digest));
        // Blobs may be read-only to their owner; root is not held to that.
        let file = file.or_else(|_| std::fs::File::open(store.path(digest))).unwrap();
        file.set_modified(fetched_at(age)).unwrap();
    }
    let node = TestNode::start(folder.path(), &["--keep-artifacts-bytes", "24"]).await;
    node.stop().await;
    let mut kept = Vec::new();
    for digest in &digests {
        kept.push(store.contains(digest).await.unwrap());
    }
    assert_eq!(kept, [true, false, true], "the one fetched first is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_is_computed_and_can_be_checked() {
    use gpu::challenge::{Commitment, Terms, Verifier};

    let folder = tempfile::tempdir().unwrap();
    let node = TestNode::start(folder.path(), &["--gpu-name", "Test GPU", "--gpu-vram-mb", "1024"]).await;
    let terms = Terms { n: 128, products: 3, openings: 2, error_bits: 60 };
    let (verifier, challenge) = Verifier::start(&terms, [7; 32]).unwrap();
    let body = serde_json::to_value(&challenge).unwrap();
    let (status, answer) = node.api.json(Method::POST, "/challenge?device=0", Some(&body)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let commitment: Commitment = serde_json::from_value(answer).unwrap();
    let mut audit = verifier.commitment(commitment, Duration::from_secs(1)).unwrap();
    let wanted: Vec<u32> = audit.wanted().collect();
    let mut verdict = None;
    for index in wanted {
        let path = format!("/challenge/products/{index}?device=0");
        let product = node.api.send(Method::POST, &path, Some(&body)).await.bytes().await.unwrap();
        verdict = audit.check(&product).unwrap();
    }
    assert_eq!(verdict.unwrap().multiply_adds, 3 * 128 * 128 * 128);

    let huge = json!({ "seed": "00".repeat(32), "n": 8192, "products": 1 });
    for (path, body, wanted, code) in [
        ("/challenge?device=1", &body, StatusCode::NOT_FOUND, "not_found"),
        ("/challenge", &huge, StatusCode::BAD_REQUEST, "invalid_field"),
        ("/challenge", &json!({ "n": 128 }), StatusCode::BAD_REQUEST, "malformed_request"),
        ("/challenge/products/3", &body, StatusCode::BAD_REQUEST, "invalid_field"),
    ] {
        let (status, answer) = node.api.json(Method::POST, path, Some(body)).await;
        assert_eq!((status, answer["error"]["code"].as_str().unwrap()), (wanted, code), "{path} {answer}");
    }
    node.stop().await;
}
