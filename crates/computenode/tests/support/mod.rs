//! What the tests of this crate share: programs, a tiny model, jobs.
#![allow(dead_code, reason = "each test file uses a part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

pub(crate) mod engine;
pub(crate) mod hangs_up;
pub(crate) mod http;
pub(crate) mod node;
pub(crate) mod process;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{Device, Tensor};
use computenode::runtime::{Job, Limits, Model, ModelFiles, Output};
use serde_json::json;

/// Generous limits: no test reaches them by accident.
pub(crate) const LIMITS: Limits =
    Limits { wall: Duration::from_secs(60), memory_bytes: 256 << 20, output_bytes: 64 << 20 };

/// The bytes of a program in `tests/programs`.
pub(crate) fn program(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name).with_extension("wat");
    wat::parse_file(path).unwrap()
}

/// A job that runs `module` on `input`, both written into `folder`.
pub(crate) fn wasm_job(folder: &Path, module: &[u8], input: &[u8]) -> Job {
    let (path, input_path) = (folder.join("module.wasm"), folder.join("input"));
    std::fs::write(&path, module).unwrap();
    std::fs::write(&input_path, input).unwrap();
    Job {
        params: "{}".to_owned(),
        model: Model { files: ModelFiles::File(path), digest: artifact::Digest::of(module).to_string() },
        input: input_path,
        limits: LIMITS,
        gpus: Vec::new(),
        folder: folder.to_owned(),
        label: "task.1".to_owned(),
    }
}

/// A job that embeds `input` with the model in `model`.
pub(crate) fn embed_job(model: &Path, folder: &Path, input: &[u8]) -> Job {
    let input_path = folder.join("input");
    std::fs::write(&input_path, input).unwrap();
    Job {
        params: "{}".to_owned(),
        model: Model { files: folder_files(model), digest: "11".repeat(32) },
        input: input_path,
        limits: LIMITS,
        gpus: Vec::new(),
        folder: folder.to_owned(),
        label: "task.1".to_owned(),
    }
}

/// The bytes of an output.
pub(crate) fn bytes(output: Output) -> Vec<u8> {
    match output {
        Output::Bytes(bytes) => bytes,
        Output::File(path) => std::fs::read(path).unwrap(),
    }
}

/// The files of a model's folder.
pub(crate) fn folder_files(folder: &Path) -> ModelFiles {
    let names = [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ];
    let existing = names.into_iter().map(|name| (name.to_owned(), folder.join(name)));
    ModelFiles::Folder(existing.filter(|(_, path)| path.exists()).collect::<BTreeMap<String, PathBuf>>())
}

/// Writes a BERT model with one layer of width 8 and made-up weights into `folder`. Its words are `w1` to `w9`.
pub(crate) fn write_tiny_model(folder: &Path) {
    const WIDTH: usize = 8;
    const INNER: usize = 16;
    const WORDS: usize = 13;
    const POSITIONS: usize = 64;
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": INNER, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0,
    });
    let mut vocabulary = json!({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3});
    for word in 1..10 {
        vocabulary[format!("w{word}")] = json!(word + 3);
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();

    let mut tensors = HashMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let seed = name.len() as f32;
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|n| (n as f32 * 0.7 + seed).sin() * 0.5).collect();
        tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    add("embeddings.word_embeddings.weight", &[WORDS, WIDTH]);
    add("embeddings.position_embeddings.weight", &[POSITIONS, WIDTH]);
    add("embeddings.token_type_embeddings.weight", &[2, WIDTH]);
    let layer = "encoder.layer.0.";
    for (name, rows, columns) in [
        ("attention.self.query", WIDTH, WIDTH),
        ("attention.self.key", WIDTH, WIDTH),
        ("attention.self.value", WIDTH, WIDTH),
        ("attention.output.dense", WIDTH, WIDTH),
        ("intermediate.dense", INNER, WIDTH),
        ("output.dense", WIDTH, INNER),
    ] {
        add(&format!("{layer}{name}.weight"), &[rows, columns]);
        add(&format!("{layer}{name}.bias"), &[rows]);
    }
    let norms = ["embeddings.LayerNorm".to_owned(), format!("{layer}attention.output.LayerNorm")];
    for name in norms.into_iter().chain([format!("{layer}output.LayerNorm")]) {
        add(&format!("{name}.weight"), &[WIDTH]);
        add(&format!("{name}.bias"), &[WIDTH]);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}
