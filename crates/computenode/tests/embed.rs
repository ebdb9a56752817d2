//! What the embeddings are, and that no model of a stranger takes the node down.

mod support;

use std::path::Path;
use std::time::Duration;

use computenode::runtime::embed::EmbedRuntime;
use computenode::runtime::{Context, Job, RunCode, RunError, Runtime};
use serde_json::{Value, json};

async fn run_job(job: Job) -> Result<Value, RunError> {
    let runtime = EmbedRuntime::new().expect("the processor works");
    let context = Context::default();
    let running = runtime.run(job, &context);
    let ended = tokio::time::timeout(Duration::from_secs(60), running).await.expect("the job never ended");
    ended.map(|output| serde_json::from_slice(&support::bytes(output)).expect("the result is JSON"))
}

fn vectors(result: &Value) -> Vec<Vec<f64>> {
    let data = result["data"].as_array().expect("a list");
    data.iter().map(|item| serde_json::from_value(item["embedding"].clone()).expect("numbers")).collect()
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[tokio::test]
async fn the_result_is_an_openai_response() {
    let folder = tempfile::tempdir().unwrap();
    support::write_tiny_model(folder.path());
    let result = run_job(support::embed_job(folder.path(), folder.path(), b"w1 w2 w3\n\nw4")).await.unwrap();
    assert_eq!(result["object"], "list");
    assert_eq!(result["model"], "11".repeat(32));
    assert_eq!(result["data"][1]["index"], 1);
    assert_eq!(result["data"][1]["object"], "embedding");
    // Each text has a token in front and one behind.
    assert_eq!(result["usage"], json!({"prompt_tokens": 8, "total_tokens": 8}));
    for vector in vectors(&result) {
        assert_eq!(vector.len(), 8);
        assert!((length(&vector) - 1.0).abs() < 1e-6);
    }
}

#[tokio::test]
async fn company_does_not_change_a_vector() {
    let folder = tempfile::tempdir().unwrap();
    support::write_tiny_model(folder.path());
    let texts = ["w1", "w2 w3 w4 w5 w6 w7", "w8 w9", "unknown words", "w1"];
    let together =
        support::embed_job(folder.path(), folder.path(), json!({"input": texts}).to_string().as_bytes());
    let together = vectors(&run_job(together).await.unwrap());
    assert_eq!(together[0], together[4]);
    for (text, in_company) in texts.iter().zip(&together) {
        let alone =
            support::embed_job(folder.path(), folder.path(), json!({"input": text}).to_string().as_bytes());
        let alone = &vectors(&run_job(alone).await.unwrap())[0];
        let distance: f64 = alone.iter().zip(in_company).map(|(a, b)| (a - b).abs()).sum();
        assert!(distance < 1e-5, "{text}: {distance}");
    }
}

#[tokio::test]
async fn long_texts_are_truncated() {
    let folder = tempfile::tempdir().unwrap();
    support::write_tiny_model(folder.path());
    let text = "w1 ".repeat(1000);
    let tokens = |result: Value| result["usage"]["prompt_tokens"].as_u64().unwrap();
    let job = support::embed_job(folder.path(), folder.path(), text.as_bytes());
    assert_eq!(tokens(run_job(job).await.unwrap()), 64, "as many as the model has positions");
    std::fs::write(folder.path().join("sentence_bert_config.json"), r#"{"max_seq_length":10}"#).unwrap();
    let job = support::embed_job(folder.path(), folder.path(), text.as_bytes());
    assert_eq!(tokens(run_job(job).await.unwrap()), 10);
}

#[tokio::test]
async fn pooling_and_normalisation_are_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    support::write_tiny_model(path);
    std::fs::create_dir(path.join("1_Pooling")).unwrap();
    let embed =
        || async { vectors(&run_job(support::embed_job(path, path, b"w1 w2")).await.unwrap())[0].clone() };
    let pooling = |mode: &str| json!({"word_embedding_dimension": 8, mode: true}).to_string();
    let mean = embed().await;
    std::fs::write(path.join("1_Pooling/config.json"), pooling("pooling_mode_mean_tokens")).unwrap();
    assert_eq!(embed().await, mean);
    std::fs::write(path.join("1_Pooling/config.json"), pooling("pooling_mode_cls_token")).unwrap();
    assert_ne!(embed().await, mean);
    let modules =
        json!([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]);
    std::fs::write(path.join("modules.json"), modules.to_string()).unwrap();
    assert!((length(&embed().await) - 1.0).abs() > 1e-3, "no module normalises");
}

/// Runs with the tiny model after `change`, which must make it a bad one.
async fn is_bad(what: &str, change: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    support::write_tiny_model(folder.path());
    change(folder.path());
    let error = run_job(support::embed_job(folder.path(), folder.path(), b"w1 w2")).await.expect_err(what);
    assert_eq!(error.code, RunCode::BadModel, "{what}: {error}");
}

#[tokio::test]
async fn configurations_that_lie_are_refused() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(16)),
        ("hidden_size", json!(u64::MAX)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(3)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(2)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("vocab_size", json!(1 << 20)),
        ("max_position_embeddings", json!(1 << 19)),
        ("max_position_embeddings", json!(1)),
        ("type_vocab_size", json!(0)),
        ("hidden_act", json!("none")),
        ("model_type", json!("t5")),
        ("position_embedding_type", json!("relative_key")),
        ("layer_norm_eps", json!(-1)),
    ] {
        is_bad(&format!("{key} = {value}"), |folder| {
            let path = folder.join("config.json");
            let mut config: Value =
                serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("config");
            config[key] = value;
            std::fs::write(path, config.to_string()).expect("config");
        })
        .await;
    }
    for (name, content) in [
        ("config.json", "{}"),
        ("config.json", "["),
        ("tokenizer.json", "{}"),
        ("sentence_bert_config.json", r#"{"max_seq_length":1}"#),
        ("sentence_bert_config.json", r#"{"max_seq_length":0}"#),
        ("modules.json", r#"[{"path":"2_Dense","type":"sentence_transformers.models.Dense"}]"#),
    ] {
        is_bad(&format!("{name}: {content}"), |folder| {
            std::fs::write(folder.join(name), content).expect("written");
        })
        .await;
    }
}

#[tokio::test]
async fn weights_that_lie_are_refused() {
    let header = |text: &str, data: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let name = "embeddings.word_embeddings.weight";
    for (what, bytes) in [
        ("nothing", vec![]),
        ("a cut length", vec![1, 2, 3]),
        ("a header of 2^64 bytes", vec![0xff; 16]),
        ("a header beyond the end", 100u64.to_le_bytes().to_vec()),
        ("no JSON", header("nonsense", 0)),
        ("no tensors", header("{}", 0)),
        (
            "data beyond the end",
            header(&json!({name: {"dtype":"F32","shape":[13,8],"data_offsets":[0,416]}}).to_string(), 4),
        ),
        (
            "offsets backwards",
            header(&json!({name: {"dtype":"F32","shape":[13,8],"data_offsets":[416,0]}}).to_string(), 416),
        ),
        (
            "a shape that overflows",
            header(
                &json!({name: {"dtype":"F32","shape":[u64::MAX,u64::MAX],"data_offsets":[0,416]}})
                    .to_string(),
                416,
            ),
        ),
        (
            "a shape larger than its data",
            header(
                &json!({name: {"dtype":"F32","shape":[1u64 << 40],"data_offsets":[0,416]}}).to_string(),
                416,
            ),
        ),
        (
            "a type that is none",
            header(&json!({name: {"dtype":"X9","shape":[13,8],"data_offsets":[0,416]}}).to_string(), 416),
        ),
    ] {
        is_bad(what, |folder| std::fs::write(folder.join("model.safetensors"), &bytes).expect("written"))
            .await;
    }
    is_bad("numbers that are none", |folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = std::fs::read(&path).expect("weights");
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        bytes[start..].fill(0xff);
        std::fs::write(path, bytes).expect("weights");
    })
    .await;
}

#[tokio::test]
async fn a_model_larger_than_the_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    support::write_tiny_model(folder.path());
    // Too little for the weights; enough for them, but not to work with them.
    for memory_bytes in [4096, 1 << 20] {
        let mut job = support::embed_job(folder.path(), folder.path(), b"w1");
        job.limits.memory_bytes = memory_bytes;
        assert_eq!(run_job(job).await.unwrap_err().code, RunCode::OutOfMemory);
    }
}

#[tokio::test]
async fn tokens_outside_the_vocabulary_are_refused() {
    is_bad("a token beyond the vocabulary", |folder| {
        let path = folder.join("tokenizer.json");
        let text = std::fs::read_to_string(&path).expect("tokenizer");
        std::fs::write(path, text.replace("\"w1\":4", "\"w1\":4000000000")).expect("tokenizer");
    })
    .await;
}

/// What transformers gives for thirty words, see `tiny_models.py`.
#[rustfmt::skip]
const FAMILIES: [(&str, &str, [f64; 8]); 8] = [
    ("bert", "mean", [-0.406387, 0.173958, 0.296186, 0.321841, 0.619763, 0.226516, -0.332444, -0.259512]),
    ("bert", "max", [-0.406068, 0.174814, 0.296120, 0.322006, 0.619518, 0.227712, -0.332116, -0.259261]),
    ("roberta", "mean", [-0.406169, 0.173983, 0.296165, 0.321855, 0.619842, 0.226632, -0.332469, -0.259518]),
    ("roberta", "max", [-0.405857, 0.174938, 0.296080, 0.322061, 0.619627, 0.227628, -0.332143, -0.259267]),
    ("mpnet", "mean", [-0.354748, 0.073274, 0.319099, 0.273842, 0.597120, 0.465119, -0.197838, -0.282742]),
    ("mpnet", "max", [-0.354385, 0.073676, 0.318920, 0.273784, 0.597312, 0.465588, -0.197336, -0.282525]),
    ("distilbert", "mean", [-0.262389, -0.249112, -0.310807, 0.145366, 0.310367, 0.330377, 0.672635, 0.305694]),
    ("distilbert", "max", [-0.261741, -0.247464, -0.306356, 0.146950, 0.310120, 0.330893, 0.673601, 0.308871]),
];

#[tokio::test]
async fn each_family_computes_what_transformers_does() {
    for (family, pooling, expected) in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        write_family(folder.path(), family);
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        let pooling_file = json!({ format!("pooling_mode_{pooling}_tokens"): true }).to_string();
        std::fs::write(folder.path().join("1_Pooling/config.json"), pooling_file).unwrap();
        let words: Vec<String> = (0..30).map(|n| format!("w{}", n % 9 + 1)).collect();
        // Others of the same length and of another one keep it company.
        let texts = json!({"input": ["w1", words.join(" "), "w2 w3", words.join(" ")]}).to_string();
        let job = support::embed_job(folder.path(), folder.path(), texts.as_bytes());
        let vectors = vectors(&run_job(job).await.unwrap());
        for vector in [&vectors[1], &vectors[3]] {
            let worst = vector.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5, "{family} {pooling}: off by {worst}: {vector:?}");
        }
    }
}

/// Writes a model of a family with two layers, whose weights `tiny_models.py` makes in the same way.
#[expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
fn write_family(folder: &Path, family: &str) {
    use candle_core::{Device, Tensor};

    const WIDTH: usize = 8;
    const INNER: usize = 16;
    support::write_tiny_model(folder);
    let config = match family {
        "distilbert" => json!({
            "model_type": family, "vocab_size": 13, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": INNER,
            "activation": "gelu", "max_position_embeddings": 64,
        }),
        _ => json!({
            "model_type": family, "vocab_size": 13, "hidden_size": WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": INNER, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
            "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 1,
        }),
    };
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let mut tensors = std::collections::HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|n| (n as f32 * 0.7 + name.len() as f32).sin() * 0.5).collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    let (linear, norms): ([(&str, usize, usize); 6], [&str; 2]) = match family {
        "distilbert" => (
            [
                ("attention.q_lin", WIDTH, WIDTH),
                ("attention.k_lin", WIDTH, WIDTH),
                ("attention.v_lin", WIDTH, WIDTH),
                ("attention.out_lin", WIDTH, WIDTH),
                ("ffn.lin1", INNER, WIDTH),
                ("ffn.lin2", WIDTH, INNER),
            ],
            ["sa_layer_norm", "output_layer_norm"],
        ),
        "mpnet" => (
            [
                ("attention.attn.q", WIDTH, WIDTH),
                ("attention.attn.k", WIDTH, WIDTH),
                ("attention.attn.v", WIDTH, WIDTH),
                ("attention.attn.o", WIDTH, WIDTH),
                ("intermediate.dense", INNER, WIDTH),
                ("output.dense", WIDTH, INNER),
            ],
            ["attention.LayerNorm", "output.LayerNorm"],
        ),
        _ => (
            [
                ("attention.self.query", WIDTH, WIDTH),
                ("attention.self.key", WIDTH, WIDTH),
                ("attention.self.value", WIDTH, WIDTH),
                ("attention.output.dense", WIDTH, WIDTH),
                ("intermediate.dense", INNER, WIDTH),
                ("output.dense", WIDTH, INNER),
            ],
            ["attention.output.LayerNorm", "output.LayerNorm"],
        ),
    };
    add("embeddings.word_embeddings.weight".to_owned(), &[13, WIDTH]);
    add("embeddings.position_embeddings.weight".to_owned(), &[64, WIDTH]);
    add("embeddings.token_type_embeddings.weight".to_owned(), &[2, WIDTH]);
    add("encoder.relative_attention_bias.weight".to_owned(), &[32, 2]);
    let layers = if family == "distilbert" { "transformer.layer" } else { "encoder.layer" };
    let mut all_norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..2 {
        for (name, to, from) in linear {
            add(format!("{layers}.{layer}.{name}.weight"), &[to, from]);
            add(format!("{layers}.{layer}.{name}.bias"), &[to]);
        }
        all_norms.extend(norms.map(|norm| format!("{layers}.{layer}.{norm}")));
    }
    for norm in all_norms {
        add(format!("{norm}.weight"), &[WIDTH]);
        add(format!("{norm}.bias"), &[WIDTH]);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}
