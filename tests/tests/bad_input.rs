//! What a task that cannot be carried out comes to: one code in the provider's signed word, in `status`, in `explain` and in how `run`
//! ends, each with what helps, and nothing of it held against the provider.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use rpc::failure::{Blame, blame, hint};
use serde_json::json;
use system_tests::{Market, PROVIDER_KEYS, free_port, said, upper_case};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A server that does what its paths say.
async fn server() -> String {
    let router = Router::new()
        .route("/loop", get(|| async { Redirect::temporary("/loop") }))
        .route("/other", get(|| async { "other words than before" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Answers every request with less than it announces.
async fn cut_off() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/cut", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n")
                && stream.read_buf(&mut asked).await.is_ok_and(|read| read > 0)
            {}
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\na beginning").await;
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_one_code_everywhere() {
    let market = Market::new();
    let node_port = free_port();
    let _node = market.node("node", node_port, &["--max-result-bytes", "1000", "--slots", "16"]).await;
    let _relay = market.relay(&[]).await;
    let _agent = market.agent("agent", PROVIDER_KEYS[0], market.port, ("node", node_port), &[]);
    market.providers(1).await;
    let url = server().await;
    let file = |name: &str, bytes: &[u8]| {
        let path = market.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (upper, text) = (file("upper.wasm", &upper_case()), file("text", b"some words"));
    let long = file("long", &[b'x'; 2000]);
    // Weights whose header promises more than there is.
    let lying = market.path("lying");
    std::fs::create_dir(&lying).unwrap();
    let config = json!({
        "model_type": "bert", "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
        "type_vocab_size": 2,
    });
    let header = json!({"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [13, 8], "data_offsets": [0, 416]}});
    let header = header.to_string();
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(lying.join("config.json"), config.to_string()).unwrap();
    let tokenizer = json!({
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0}},
    });
    std::fs::write(lying.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(lying.join("model.safetensors"), weights).unwrap();
    let lying = lying.to_str().unwrap().to_owned();

    let at = |path: &str| format!("{url}/{path}");
    let of_codec = "ipfs://bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi".to_owned();
    let wrong = "11".repeat(32);
    let cases: [(&str, Vec<String>); 8] = [
        ("hash_mismatch", vec![upper.clone(), at("other"), "--input-hash".to_owned(), wrong]),
        ("truncated", vec![upper.clone(), cut_off().await]),
        ("not_found", vec![upper.clone(), at("gone")]),
        ("redirect_loop", vec![upper.clone(), at("loop")]),
        ("unsupported_codec", vec![upper.clone(), of_codec]),
        ("bad_model", vec![lying, text.clone()]),
        ("output_too_large", vec![upper.clone(), long]),
        ("bad_params", vec![upper, text, "--params".to_owned(), r#"{"memory_mb":4000000000}"#.to_owned()]),
    ];
    let market = &market;
    let runs = cases.iter().map(async |(code, words)| {
        let mut run = vec!["run", "--model", &words[0], "--input", &words[1]];
        run.extend(words[2..].iter().map(String::as_str));
        run.extend(["--max-attempts", "1", "--poll", "--output", "-"]);
        (*code, market.cli(&run).await)
    });
    for (code, out) in futures_util::future::join_all(runs).await {
        let told = said(&out);
        assert_eq!(out.status.code(), Some(1), "{code}: {told}");
        let help = hint(code).unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(stderr.contains(&format!("error: the task is failed: {code}: ")), "{code}: {told}");
        assert!(stderr.contains(&format!("hint: {help}")), "{code}: {told}");
        let task = told.split_ascii_whitespace().find(|word| word.starts_with("0x") && word.len() == 66);
        let task = task.unwrap_or_else(|| panic!("{code}: no task in {told}")).to_owned();
        for command in ["status", "explain"] {
            let told = said(&market.cli(&[command, &task]).await);
            assert!(told.contains(code) && told.contains(help), "{command}: {code}: {told}");
        }
        // The provider's own word, which anybody can check.
        let evidence = market.get(&format!("/v1/tasks/{task}/evidence")).await;
        let events = evidence["events"].as_array().unwrap();
        let signed = events.iter().find(|event| event.to_string().contains("\"attempt_failed\""));
        assert!(
            signed.is_some_and(|event| event.to_string().contains(&format!("\"{code}\""))),
            "{evidence:#}"
        );
        let file = market.path(&format!("{code}.json"));
        std::fs::write(&file, evidence.to_string()).unwrap();
        let verified = market.cli(&["verify", file.to_str().unwrap()]).await;
        assert!(verified.status.success(), "{code}: {}", said(&verified));
        assert_ne!(blame(code), Blame::Provider, "{code}");
    }
}
