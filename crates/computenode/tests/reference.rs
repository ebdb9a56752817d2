//! The node's embeddings against those of PyTorch, with the real weights of all-MiniLM-L6-v2.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use computenode::runtime::embed::EmbedRuntime;
use computenode::runtime::{Context, Runtime};
use serde::Deserialize;

/// What differs between two ways to compute in 32 bits: some 1e-6 here.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    paragraph: usize,
    embedding: Vec<f64>,
}

#[derive(Deserialize)]
struct Response {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    embedding: Vec<f64>,
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate lies two levels down")
}

fn weights() -> PathBuf {
    let folder = std::env::var_os("ZORAI_TEST_WEIGHTS")
        .map_or_else(|| workspace().join("target/weights/all-MiniLM-L6-v2"), PathBuf::from);
    assert!(
        folder.join("model.safetensors").is_file(),
        "no weights in {}\nhint: python3 scripts/fetch_weights.py, or set ZORAI_TEST_WEIGHTS to a folder with them",
        folder.display()
    );
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_agree_with_pytorch() {
    let demo = workspace().join("demo");
    let references: Vec<Reference> =
        serde_json::from_slice(&std::fs::read(demo.join("reference_vectors.json")).unwrap()).unwrap();
    assert!(references.len() >= 10);

    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read(demo.join("text.txt")).unwrap();
    let mut job = support::embed_job(&weights(), folder.path(), &text);
    job.limits.memory_bytes = 1 << 30;
    let (runtime, context) = (EmbedRuntime::new().unwrap(), Context::default());
    let running = runtime.run(job, &context);
    let output = tokio::time::timeout(Duration::from_secs(120), running).await.unwrap().unwrap();
    let response: Response = serde_json::from_slice(&support::bytes(output)).unwrap();
    assert!((20..=40).contains(&response.data.len()));
    assert_eq!(context.progress.percent(), 100);
    assert_eq!(runtime.warm_models().len(), 1);

    for reference in references {
        let ours = &response.data[reference.paragraph].embedding;
        assert_eq!(ours.len(), reference.embedding.len());
        let worst = ours.iter().zip(&reference.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < TOLERANCE, "paragraph {}: off by {worst}", reference.paragraph);
    }
}
