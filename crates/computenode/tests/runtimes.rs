//! What every runtime keeps to: one suite, run on each of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod support;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use computenode::runtime::embed::EmbedRuntime;
use computenode::runtime::wasm::WasmRuntime;
use computenode::runtime::{Context, Job, ModelFiles, ModelShape, Output, RunCode, RunError, Runtime};

/// No run of the suite takes longer, by far.
const PATIENCE: Duration = Duration::from_secs(60);
/// A job that has to stop does so within this, also on a busy machine. It is some tens of milliseconds otherwise.
const SOON: Duration = Duration::from_secs(5);

/// One runtime, with jobs for it.
struct Case {
    runtime: Arc<dyn Runtime>,
    /// Gives a result of more than one byte, soon.
    quick: Job,
    /// Takes much longer than 100 ms.
    long: Job,
    _folders: Vec<tempfile::TempDir>,
}

#[tokio::test(flavor = "multi_thread")]
async fn wasm_keeps_to_the_suite() {
    let (quick, long) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    suite(&Case {
        runtime: Arc::new(WasmRuntime::new().unwrap()),
        quick: support::wasm_job(quick.path(), &support::program("upper"), b"hello"),
        long: support::wasm_job(long.path(), &support::program("spin"), b""),
        _folders: vec![quick, long],
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embed_keeps_to_the_suite() {
    let (model, quick, long) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    support::write_tiny_model(model.path());
    let text = format!("{}\n\n", "w1 w2 w3 w4 w5 w6 w7 w8 ".repeat(8));
    suite(&Case {
        runtime: Arc::new(EmbedRuntime::new().unwrap()),
        quick: support::embed_job(model.path(), quick.path(), b"w1 w2\n\nw3"),
        long: support::embed_job(model.path(), long.path(), text.repeat(10_000).as_bytes()),
        _folders: vec![model, quick, long],
    })
    .await;
}

async fn suite(case: &Case) {
    gives_the_same_bytes_again(case).await;
    stops_when_cancelled(case).await;
    stops_at_its_deadline(case).await;
    stops_when_dropped(case);
    refuses_a_large_result(case).await;
    names_what_is_bad(case).await;
    gives_the_same_bytes_again(case).await;
}

async fn run(case: &Case, job: Job, context: &Context) -> Result<Output, RunError> {
    tokio::time::timeout(PATIENCE, case.runtime.run(job, context)).await.expect("the job never ended")
}

async fn code(case: &Case, job: Job) -> RunCode {
    run(case, job, &Context::default()).await.unwrap_err().code
}

async fn gives_the_same_bytes_again(case: &Case) {
    let first = run(case, case.quick.clone(), &Context::default()).await.unwrap();
    let first = support::bytes(first);
    assert!(first.len() > 1);
    let second = run(case, case.quick.clone(), &Context::default()).await.unwrap();
    assert_eq!(support::bytes(second), first);
}

async fn stops_when_cancelled(case: &Case) {
    let before = Context::default();
    before.cancel.cancel();
    assert_eq!(run(case, case.long.clone(), &before).await.unwrap_err().code, RunCode::Cancelled);

    let during = Context::default();
    let cancelled_at = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        during.cancel.cancel();
        Instant::now()
    };
    let (ended, cancelled_at) = tokio::join!(run(case, case.long.clone(), &during), cancelled_at);
    assert_eq!(ended.unwrap_err().code, RunCode::Cancelled);
    assert!(cancelled_at.elapsed() < SOON, "it went on for {:?}", cancelled_at.elapsed());
}

async fn stops_at_its_deadline(case: &Case) {
    let mut job = case.long.clone();
    job.limits.wall = Duration::from_millis(100);
    let started = Instant::now();
    assert_eq!(code(case, job).await, RunCode::TimedOut);
    assert!(started.elapsed() < SOON, "it went on for {:?}", started.elapsed());
}

fn stops_when_dropped(case: &Case) {
    let (runtime, job) = (Arc::clone(&case.runtime), case.long.clone());
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let threads = tokio::runtime::Runtime::new().unwrap();
        let context = Context::default();
        let dropped = threads.block_on(async {
            tokio::time::timeout(Duration::from_millis(100), runtime.run(job, &context)).await.is_err()
        });
        // This waits for all work that goes on.
        drop(threads);
        done.send(dropped).unwrap();
    });
    assert!(ended.recv_timeout(SOON).expect("it went on"), "the job was too short");
}

async fn refuses_a_large_result(case: &Case) {
    let mut job = case.quick.clone();
    job.limits.output_bytes = 1;
    assert_eq!(code(case, job).await, RunCode::OutputTooLarge);
}

async fn names_what_is_bad(case: &Case) {
    let quick = || case.quick.clone();
    assert_eq!(code(case, Job { params: r#"{"nope":1}"#.into(), ..quick() }).await, RunCode::BadParams);
    assert_eq!(code(case, Job { params: "{".into(), ..quick() }).await, RunCode::BadParams);
    assert_eq!(code(case, Job { input: PathBuf::from("/nowhere"), ..quick() }).await, RunCode::BadInput);

    // A digest of its own, for a cached model is not read again.
    let mut job = quick();
    job.model.digest = "ff".repeat(32);
    job.model.files = match case.runtime.model_shape() {
        ModelShape::File | ModelShape::Image => ModelFiles::File(PathBuf::from("/nowhere")),
        ModelShape::Folder { .. } | ModelShape::Named => ModelFiles::Folder([].into()),
    };
    assert_eq!(code(case, job.clone()).await, RunCode::BadModel);
    job.model.files = match case.runtime.model_shape() {
        ModelShape::File | ModelShape::Image => ModelFiles::Folder([].into()),
        ModelShape::Folder { .. } | ModelShape::Named => ModelFiles::File(PathBuf::from("/nowhere")),
    };
    assert_eq!(code(case, job).await, RunCode::BadModel);
}
