//! Tasks that nobody could carry out: each has a code of its own, which says by whose making it failed and what helps.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod support;

use axum::Router;
use axum::http::header;
use axum::response::Redirect;
use axum::routing::get;
use reqwest::{Method, StatusCode};
use rpc::failure::{self, Blame};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;

use support::http::{compute_request, ended};
use support::node::TestNode;

/// The largest model or input that the node fetches, and the largest result that it keeps, in bytes.
const MAX_ARTIFACT: &str = "100000";
const MAX_RESULT: &str = "1000";

/// A server that does what its paths say.
async fn server() -> (String, AbortOnDropHandle<()>) {
    let router = Router::new()
        .route("/loop", get(|| async { Redirect::temporary("/loop") }))
        .route("/private", get(|| async { StatusCode::FORBIDDEN }))
        .route("/packed", get(|| async { ([(header::CONTENT_ENCODING, "gzip")], "packed") }))
        .route("/large", get(|| async { vec![b'x'; 100_001] }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, AbortOnDropHandle::new(serving))
}

/// Answers every request with less than it announces.
async fn cut_off() -> (String, AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/cut", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut asked).await.is_ok_and(|read| read > 0)
            {}
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\na beginning").await;
        }
    });
    (url, AbortOnDropHandle::new(serving))
}

/// Merges `change` into a request's task.
fn change(request: &mut Value, change: Value) {
    for (key, value) in change.as_object().unwrap() {
        match (&mut request["task"][key], value) {
            (Value::Object(fields), Value::Object(changed)) => fields.extend(changed.clone()),
            (field, value) => *field = value.clone(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_input_has_its_code_its_maker_and_its_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (url, _serving) = server().await;
    let (cut, _cutting) = cut_off().await;
    let flags = ["--max-artifact-bytes", MAX_ARTIFACT, "--max-result-bytes", MAX_RESULT, "--slots", "64"];
    let node =
        TestNode::start(path, &[&flags[..], &["--allow-private-addresses", "--ipfs-gateway", &url]].concat())
            .await;

    let model = |name: &str, spoil: &dyn Fn(&std::path::Path)| {
        let place = path.join(name);
        std::fs::create_dir(&place).unwrap();
        support::write_tiny_model(&place);
        spoil(&place);
        format!("file://{}/", place.display())
    };
    let sound = model("sound", &|_| {});
    // As many bytes as the header says, of tensors that are larger.
    let lying = model("lying", &|place| {
        let name = "embeddings.word_embeddings.weight";
        let tensor = json!({name: {"dtype": "F32", "shape": [1_u64 << 40], "data_offsets": [0, 416]}});
        let header = tensor.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + 416, 0);
        std::fs::write(place.join("model.safetensors"), bytes).unwrap();
    });
    let empty = path.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = path.join("text");
    std::fs::write(&text, "w1 w2").unwrap();
    let embed = |model: &str| json!({"config": {"runtime": "embed"}, "model_cid": model});
    let embed_text = |model: &str| {
        let mut task = embed(model);
        task["input_cid"] = json!(format!("file://{}", text.display()));
        task
    };
    let at = |field: &str, path: &str| json!({field: format!("{url}/{path}")});
    // A block of dag-cbor, and one under BLAKE3.
    let of_codec = "ipfs://bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi";
    let of_hash = "ipfs://bafkr4ihgnsrtwbkv3kamo3plf6r3oheo5m5hkocc3y3hppf2sgelsjq6ba";
    let wrong = "11".repeat(32);
    let params = |params: &str| json!({"config": {"params": params}});

    let cases: Vec<(&str, &str, Value, &str, Blame)> = vec![
        (
            "a wrong hash of the input",
            "upper",
            json!({"input_hash": wrong}),
            "hash_mismatch",
            Blame::Requester,
        ),
        (
            "a wrong hash of the model",
            "upper",
            json!({"model_hash": wrong}),
            "hash_mismatch",
            Blame::Requester,
        ),
        ("a download that is cut", "upper", json!({"input_cid": cut}), "truncated", Blame::Neither),
        ("what is not there", "upper", at("input_cid", "gone"), "not_found", Blame::Requester),
        ("a model that is not there", "upper", at("model_cid", "gone"), "not_found", Blame::Requester),
        ("redirects without end", "upper", at("input_cid", "loop"), "redirect_loop", Blame::Requester),
        ("what wants credentials", "upper", at("input_cid", "private"), "unauthorized", Blame::Requester),
        ("what is compressed", "upper", at("input_cid", "packed"), "content_encoded", Blame::Requester),
        ("what is too large", "upper", at("input_cid", "large"), "too_large", Blame::Requester),
        ("an unknown codec", "upper", json!({"model_cid": of_codec}), "unsupported_codec", Blame::Requester),
        ("an unknown hash", "upper", json!({"model_cid": of_hash}), "unsupported_hash", Blame::Requester),
        (
            "what no gateway has",
            "upper",
            json!({"model_cid": "ipfs://bafkreihgnsrtwbkv3kamo3plf6r3oheo5m5hkocc3y3hppf2sgelsjq6ba"}),
            "not_found",
            Blame::Requester,
        ),
        (
            "a folder of the host",
            "upper",
            json!({"model_cid": "file:///etc/hosts"}),
            "not_allowed",
            Blame::Requester,
        ),
        (
            "a folder as a program",
            "upper",
            json!({"model_cid": "https://example.org/folder/"}),
            "bad_reference",
            Blame::Requester,
        ),
        (
            "an image as a program",
            "upper",
            json!({"model_cid": format!("oci://example.org/x@sha256:{wrong}")}),
            "unsupported_scheme",
            Blame::Requester,
        ),
        (
            "no program",
            "upper",
            json!({"model_cid": format!("file://{}/input-1", path.display())}),
            "bad_model",
            Blame::Requester,
        ),
        ("a model that lies about its tensors", "upper", embed_text(&lying), "bad_model", Blame::Requester),
        (
            "a model without its files",
            "upper",
            embed_text(&format!("file://{}/", empty.display())),
            "not_found",
            Blame::Requester,
        ),
        ("an input that is no text", "upper", embed(&sound), "bad_input", Blame::Requester),
        ("parameters that are none", "upper", params("{}x"), "bad_params", Blame::Requester),
        ("too little fuel", "spin", params(r#"{"fuel":1000}"#), "out_of_fuel", Blame::Requester),
        ("a result over the limit", "flood", json!({}), "output_too_large", Blame::Requester),
        ("a program that traps", "trap", json!({}), "trapped", Blame::Requester),
        ("a program that fails", "exit", json!({}), "exit_nonzero", Blame::Requester),
        (
            "a program that does not end",
            "spin",
            json!({"config": {"max_duration": 1}}),
            "timed_out",
            Blame::Neither,
        ),
    ];
    for (number, (what, program, changed, ..)) in (1..).zip(&cases) {
        // To the embedding runtime this is no request, and to the other a text like any.
        let mut request = compute_request(path, number, program, r#"{"input": 7}"#);
        change(&mut request, changed.clone());
        let (status, body) = node.api.json(Method::POST, "/compute", Some(&request)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{what}: {body}");
    }
    let mut wrong = Vec::new();
    for (number, (what, _, _, code, maker)) in (1..).zip(&cases) {
        let failed = ended(&node.api, number).await;
        let (told, message) = (&failed["failure"]["code"], failed["failure"]["message"].as_str());
        if *told != *code || message.is_none_or(str::is_empty) {
            wrong.push(format!("{what}: not {code}: {failed}"));
        }
        assert_eq!(failure::blame(code), *maker, "{what}: {code}");
        assert!(failure::hint(code).is_some(), "{what}: nothing helps against {code}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // And none of it kept the node from working.
    node.api.json(Method::POST, "/compute", Some(&compute_request(path, 99, "upper", "x"))).await;
    assert_eq!(ended(&node.api, 99).await["phase"], "done");
    node.stop().await;
}
